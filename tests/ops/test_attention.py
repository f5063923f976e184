import math

import pytest
import torch
from agreement import assert_agrees, output_and_gradients, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops import attention, force_backend, rotary_attention
from verim.ops.attention import cpu
from verim.ops.attention.reference import attention_reference


def packed(batch, length, heads, dim, scale=1.0):
    generator = torch.Generator().manual_seed(length * 100 + dim)
    return scale * torch.randn(batch, length, 3, heads, dim, generator=generator)


def tables(length, dim):
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, dim, 2) / dim)
    return angles.cos(), angles.sin()


def rotary(qkv, causal=True):
    return rotary_attention(qkv, *(table.to(qkv) for table in tables(qkv.shape[1], qkv.shape[4])), causal=causal)


lengths = st.sampled_from([1, 2, 7, 15, 16, 17, 31, 32, 33, 67, 128])
dims = st.sampled_from([1, 3, 8, 15, 16, 17, 24, 32, 40, 64])


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 2),
    length=lengths,
    more=st.integers(0, 40),
    heads=st.integers(1, 3),
    dim=dims,
    causal=st.booleans(),
    scale=st.sampled_from([0.01, 1.0, 3.0]),
)
def test_the_kernel_agrees_with_the_reference(batch, length, more, heads, dim, causal, scale):
    q = packed(batch, length, heads, dim, scale)[:, :, 0]
    k, v = packed(batch, length + more, heads, dim, scale).unbind(2)[1:]
    assert_agrees(lambda *qkv: attention(*qkv, causal=causal), [q, k, v], tolerance=5e-6, terms=scale**2)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 2),
    length=lengths,
    heads=st.integers(1, 3),
    dim=st.sampled_from([2, 6, 8, 16, 18, 32, 48, 64]),
    causal=st.booleans(),
)
def test_rotation_inside_agrees_with_the_reference(batch, length, heads, dim, causal):
    assert_agrees(lambda qkv: rotary(qkv, causal), [packed(batch, length, heads, dim)], tolerance=5e-6)


@pytest.mark.parametrize(("length", "dim"), [(1025, 4), (20, 130)])
def test_beyond_the_kernels_shapes_the_answer_is_the_same(length, dim):
    qkv = packed(1, length, 2, dim)
    assert_agrees(lambda x: attention(*x.unbind(2)), [qkv], tolerance=5e-6)
    assert_agrees(rotary, [qkv], tolerance=5e-6)
    assert_agrees(lambda x: attention(x[:, -3:, 0], x[:, :, 1], x[:, :, 2]), [qkv], tolerance=5e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_has_the_derivatives_of_its_formula_and_is_torchs(causal):
    q = packed(2, 3, 2, 4).double()[:, :, 0]
    k, v = packed(2, 5, 2, 4).double().unbind(2)[1:]
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: attention_reference(*x, None, causal, 0, 0.0, None, 0.3), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: attention_reference(*x, None, causal, 0, 0.0, None, 0.3), leaves)
    if causal:
        k, v = k[:, :3], v[:, :3]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (q, k, v)), is_causal=causal, scale=0.3
    )
    assert torch.allclose(
        attention_reference(q, k, v, None, causal, 0, 0.0, None, 0.3), theirs.transpose(1, 2), rtol=1e-12
    )


def test_rotated_scores_depend_on_the_distance_alone():
    row = packed(1, 1, 1, 16)
    shifted = torch.cat([row] * 5, dim=1)
    cosines, sines = tables(25, 16)
    near = rotary_attention(shifted, cosines[:5], sines[:5], scale=3.0)
    far = rotary_attention(shifted, cosines[20:], sines[20:], scale=3.0)
    assert torch.allclose(near, far, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 70), at=st.integers(0, 68))
def test_the_future_changes_nothing(length, at):
    at = min(at, length - 2)
    qkv, changed = packed(1, length, 2, 16), packed(1, length, 2, 16)
    changed[:, at + 1 :] += 1
    assert torch.equal(rotary(qkv)[:, : at + 1], rotary(changed)[:, : at + 1])


def test_pieces_of_a_sequence_give_the_whole():
    q, k, v = packed(2, 50, 2, 16).unbind(2)
    whole = attention(q, k, v)
    pieces = [attention(q[:, a:b], k[:, :b], v[:, :b]) for a, b in ((0, 20), (20, 49), (49, 50))]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-6)


def test_any_strides_and_no_copy_is_kept():
    qkv = packed(2, 20, 2, 16)
    plain = output_and_gradients(lambda x: rotary(x), [qkv.requires_grad_()])
    backwards = qkv.detach().permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0).requires_grad_()
    for got, expected in zip(output_and_gradients(rotary, [backwards]), plain, strict=True):
        assert torch.equal(got, expected)
    q, k, v = qkv.detach().unbind(2)
    heads_first = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]
    assert torch.equal(attention(*heads_first), attention(q, k, v))


def test_a_gradient_without_strides():
    qkv = packed(2, 20, 2, 16).requires_grad_()
    (expected,) = torch.autograd.grad(rotary(qkv), qkv, torch.ones(2, 20, 2, 16))
    (got,) = torch.autograd.grad(rotary(qkv).sum(), qkv)  # the gradient of a sum is an expanded number
    assert torch.equal(got, expected)


def test_huge_scores_pick_the_largest():
    q, k, v = packed(1, 40, 1, 16, scale=1e4).unbind(2)
    with force_backend("reference"):
        expected = attention(q.double(), k.double(), v.double())
    assert torch.allclose(attention(q, k, v).double(), expected, rtol=1e-3)


def test_a_nan_is_not_hidden():
    for part in range(3):
        qkv = packed(1, 40, 1, 16)
        qkv[0, 35, part, 0, 3] = math.nan
        out = rotary(qkv)
        assert out[0, 35].isnan().any()
        assert part == 0 or out[0, 36:].isnan().any(-1).all()
        assert out[0, :32].isfinite().all()
        (gradient,) = torch.autograd.grad(rotary(qkv.requires_grad_()).sum(), qkv)
        assert gradient.isnan().any()


def test_without_gradients_the_output_is_the_same():
    qkv = packed(2, 33, 2, 16)
    with poisoned_memory(), torch.no_grad():
        plain = rotary(qkv), attention(*qkv.unbind(2))
    qkv.requires_grad_()
    assert torch.equal(plain[0], rotary(qkv)) and torch.equal(plain[1], attention(*qkv.unbind(2)))


def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(cpu, "_FORWARD_NANOSECONDS", 1e9)
    monkeypatch.setattr(cpu, "_BACKWARD_NANOSECONDS", 1e9)
    qkv, before, results = packed(3, 50, 3, 16).requires_grad_(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(output_and_gradients(rotary, [qkv]))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(result, results[0], strict=True))


def test_a_second_derivative_is_refused_not_wrong():
    qkv = packed(1, 4, 1, 8).requires_grad_()
    for out in (rotary(qkv), attention(*qkv.unbind(2))):
        with pytest.raises(InputError, match="second derivative"):
            torch.autograd.grad(out.sum(), qkv, create_graph=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: attention(q[0], k, v), r"argument q .* shape \(4, 2, 8\)"),
        (lambda q, k, v: attention(q.long(), k, v), "argument q is torch.int64"),
        (lambda q, k, v: attention(q, k[..., :4], v), r"argument k has shape \(1, 4, 2, 4\), expected"),
        (lambda q, k, v: attention(q, k, v[:, :3]), "argument v has shape"),
        (lambda q, k, v: attention(q, k, v.double()), "argument v is torch.float64, expected torch.float32"),
        (lambda q, k, v: rotary_attention(q, *tables(4, 8)), "argument qkv"),
        (lambda q, k, v: rotary_attention(torch.stack([q, k, v], 2), *tables(5, 8)), r"expected .* \(4, 4\)"),
        (lambda q, k, v: rotary_attention(torch.stack([q, k, v], 2)[..., :7], *tables(4, 8)), "even head_dim"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*packed(1, 4, 2, 8).unbind(2))
