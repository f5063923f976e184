import math

import pytest
import torch
from agreement import assert_agrees, output_and_gradients, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops import rotary
from verim.ops.rotary import cpu
from verim.ops.rotary.reference import rotary_reference


def case(batch, length, between, dim):
    generator = torch.Generator().manual_seed(length * 100 + dim)
    angles = torch.arange(length)[:, None] * 100 ** (-torch.arange(0, dim, 2) / dim)
    return torch.randn(batch, length, *between, dim, generator=generator), angles.cos(), angles.sin()


def turned(x, cosines, sines):
    return rotary(x, cosines.to(x), sines.to(x))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.sampled_from([1, 2, 31, 64, 65]),
    between=st.sampled_from([(), (1,), (3,), (2, 3)]),
    half=st.integers(1, 40),
)
def test_the_kernel_agrees_with_the_reference(batch, length, between, half):
    x, cosines, sines = case(batch, length, between, 2 * half)
    assert_agrees(lambda x: turned(x, cosines, sines), [x])


def test_the_reference_has_the_derivatives_of_its_formula():
    x, cosines, sines = (tensor.double() for tensor in case(2, 3, (2,), 6))
    assert torch.autograd.gradcheck(lambda x: rotary_reference(x, cosines, sines), x.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: rotary_reference(x, cosines, sines), x)


def test_a_rotation_keeps_lengths_and_can_be_undone():
    x, cosines, sines = case(2, 20, (3,), 16)
    y = rotary(x, cosines, sines)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(rotary(y, cosines, -sines), x, atol=1e-6)


def test_part_of_a_packed_tensor_is_read_in_place():
    qkv, cosines, sines = case(2, 20, (3, 2), 16)
    part = qkv[:, :, :2]
    assert torch.equal(rotary(part, cosines, sines), rotary(part.contiguous(), cosines, sines))
    other = part.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.equal(rotary(other, cosines, sines), rotary(part, cosines, sines))
    wide = torch.stack([cosines, sines], -1)  # tables with strides of their own
    assert torch.equal(rotary(part, wide[..., 0], wide[..., 1]), rotary(part, cosines, sines))


def test_a_nan_stays_in_its_pair():
    x, cosines, sines = case(1, 3, (2,), 8)
    x[0, 1, 0, 6] = math.nan
    y, gradient = output_and_gradients(lambda x: rotary(x, cosines, sines), [x.requires_grad_()])
    assert y.isnan().nonzero().tolist() == [[0, 1, 0, 2], [0, 1, 0, 6]]
    assert gradient.isfinite().all()


def test_without_gradients_the_output_is_the_same():
    x, cosines, sines = case(2, 5, (3,), 10)
    with poisoned_memory(), torch.no_grad():
        plain = rotary(x, cosines, sines)
    assert torch.equal(plain, rotary(x.requires_grad_(), cosines, sines))


def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(cpu, "_NANOSECONDS", 1e9)
    x, cosines, sines = case(7, 65, (2,), 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(rotary(x, cosines, sines))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_second_derivative_is_refused_not_wrong():
    x, cosines, sines = case(1, 3, (2,), 8)
    with pytest.raises(InputError, match="second derivative"):
        torch.autograd.grad(rotary(x.requires_grad_(), cosines, sines).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, c, s: rotary(x[0, 0], c, s), "argument x"),
        (lambda x, c, s: rotary(x.long(), c, s), "argument x is torch.int64"),
        (lambda x, c, s: rotary(x[..., :7], c, s), "even head_dim"),
        (lambda x, c, s: rotary(x, c[:2], s), r"argument cosines has shape \(2, 4\)"),
        (lambda x, c, s: rotary(x, c, s.double()), "argument sines is torch.float64"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*case(1, 3, (2,), 8))
