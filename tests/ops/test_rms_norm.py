import math

import pytest
import torch
from agreement import assert_agrees, output_and_gradients, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops import rms_norm
from verim.ops.rms_norm import cpu
from verim.ops.rms_norm.reference import rms_norm_reference


def x_and_gain(rows, width, scale=1.0):
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    return scale * torch.randn(rows, width, generator=generator), torch.randn(width, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 3, 127, 128, 129, 300]),
    width=st.integers(1, 70) | st.sampled_from([128, 341]),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
    eps=st.sampled_from([1e-6, 0.1]),
)
def test_the_kernel_agrees_with_the_reference(rows, width, scale, eps):
    x, gain = x_and_gain(rows, width, scale)
    largest = 1 / (x.square().mean(-1) + eps).sqrt().min().item() if rows else 0.0
    assert_agrees(lambda x, gain: rms_norm(x, gain, eps), [x, gain], terms=largest)  # two terms of dx may cancel


def test_the_reference_has_the_derivatives_of_its_formula_and_is_torchs():
    x, gain = (tensor.double().requires_grad_() for tensor in x_and_gain(3, 5))
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm_reference(x, gain, 0.1), (x, gain))
    assert torch.autograd.gradgradcheck(lambda x, gain: rms_norm_reference(x, gain, 0.1), (x, gain))
    theirs = torch.nn.functional.rms_norm(x, gain.shape, gain, 0.1)
    assert torch.allclose(rms_norm_reference(x, gain, 0.1), theirs, rtol=1e-13)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 70), power=st.integers(-10, 10))
def test_the_size_of_a_row_does_not_matter(width, power):
    x, gain = x_and_gain(4, width)
    assert torch.equal(rms_norm(x, gain, 0.0), rms_norm(x * 2.0 ** (2 * power), gain, 0.0))


def test_leading_dimensions_and_strides_do_not_matter():
    x, gain = x_and_gain(24, 20)
    expected = output_and_gradients(lambda x: rms_norm(x, gain), [x.requires_grad_()])
    other = x.detach().T.contiguous().T.requires_grad_()
    for got, want in zip(output_and_gradients(lambda x: rms_norm(x, gain), [other]), expected, strict=True):
        assert torch.equal(got, want)
    assert torch.equal(rms_norm(x.detach().view(2, 3, 4, 20), gain).view(24, 20), expected[0])


def test_a_nan_stays_in_its_row_and_reaches_the_gain():
    x, gain = x_and_gain(3, 20)
    x[1, 19] = math.nan
    leaves = [x.requires_grad_(), gain.requires_grad_()]
    y, dx, dgain = output_and_gradients(rms_norm, leaves)
    assert y.isnan().any(1).tolist() == dx.isnan().any(1).tolist() == [False, True, False]
    assert dgain.isnan().all()


def test_a_row_of_zeros():
    x, gain = torch.zeros(2, 20, requires_grad=True), torch.ones(20)
    y, dx = output_and_gradients(lambda x: rms_norm(x, gain), [x])
    assert (y == 0).all() and dx.isfinite().all()


def test_without_gradients_the_output_is_the_same():
    x, gain = x_and_gain(5, 33)
    with poisoned_memory(), torch.no_grad():
        plain = rms_norm(x, gain)
    assert torch.equal(plain, rms_norm(x.requires_grad_(), gain))


def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(cpu, "_NANOSECONDS", 1e9)
    leaves, before, results = [t.requires_grad_() for t in x_and_gain(1000, 40)], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(output_and_gradients(rms_norm, leaves))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(result, results[0], strict=True))


def test_a_second_derivative_is_refused_not_wrong():
    x, gain = x_and_gain(2, 4)
    y = rms_norm(x.requires_grad_(), gain)
    with pytest.raises(InputError, match="second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, gain: rms_norm(x.long(), gain), "argument x is torch.int64"),
        (lambda x, gain: rms_norm(x[0, 0], gain), r"argument x is torch.float32 of shape \(\)"),
        (lambda x, gain: rms_norm(x, gain[:3]), r"argument gain has shape \(3,\), expected \[width of x\] = \(5,\)"),
        (lambda x, gain: rms_norm(x, gain.double()), "argument gain is torch.float64"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*x_and_gain(4, 5))
