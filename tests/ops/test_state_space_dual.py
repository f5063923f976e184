"""Mamba-2's state-space layer: its definition, its form as a matrix, and the fast versions against them."""

import math
from typing import Any

import pytest
import torch
from agreement import Allocations, assert_agrees, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from verim.errors import InputError
from verim.ops import force_backend, selective_scan, state_space_dual
from verim.ops.state_space_dual.reference import state_space_dual_reference

TOLERANCE = 5e-6  # relative; a short sum of random signs may cancel to a few per cent of its terms


def inputs(
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """x, delta, A, B, C, D, initial."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype)

    delta = torch.nn.functional.softplus(normal(batch, length, heads) - 1)
    A = -0.1 - 4 * torch.rand(heads, generator=draw, dtype=dtype)
    B, C = normal(batch, length, groups, state), normal(batch, length, groups, state)
    D, initial = normal(heads), normal(batch, heads, state, head_dim)
    return [normal(batch, length, heads, head_dim), delta, A, B, C, D, initial]


def output_and_state(*tensors: Tensor, chunk: int | None = None) -> Tensor:
    y, final = state_space_dual(*tensors, return_state=True, chunk=chunk)
    return torch.cat([y.flatten(), final.flatten()])


def test_the_reference_is_attention_with_decays_for_weights() -> None:
    x, delta, A, B, C, _, _ = inputs(1, 9, 1, 3, 1, 4, torch.float64)
    y, _ = state_space_dual_reference(x, delta, A, B, C, None, None)
    steps = (delta * A)[0, :, 0]
    decays = torch.tensor([[steps[i + 1 : t + 1].sum().exp() if i <= t else 0 for i in range(9)] for t in range(9)])
    weights = decays.double() * (C[0, :, 0] @ B[0, :, 0].T)
    torch.testing.assert_close(y[0, :, 0], weights @ (delta * x[..., 0, :])[0], rtol=1e-6, atol=1e-6)


def test_the_reference_is_a_selective_scan_whose_channels_share_a_decay() -> None:
    x, delta, A, B, C, D, initial = inputs(2, 7, 3, 4, 1, 5, torch.float64)
    with force_backend("reference"):
        expected, final = selective_scan(
            x.flatten(2),
            delta.repeat_interleave(4, 2),
            A.repeat_interleave(4)[:, None].expand(12, 5),
            B[:, :, 0],
            C[:, :, 0],
            D.repeat_interleave(4),
            initial.mT.reshape(2, 12, 5),
            True,
        )
        y, got = state_space_dual(x, delta, A, B, C, D, initial, True)
    torch.testing.assert_close(y.flatten(2), expected)
    torch.testing.assert_close(got.mT.reshape(2, 12, 5), final)


def test_both_versions_have_the_gradients_of_their_outputs() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(1, 5, 4, 2, 2, 3, torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: output_and_state(*t, chunk=2), tensors)
    with force_backend("reference"):
        assert torch.autograd.gradcheck(output_and_state, tensors)
        assert torch.autograd.gradgradcheck(output_and_state, tensors, fast_mode=True)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([0, 1, 3]),
    length=st.sampled_from([1, 2, 7, 16, 33, 70]),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2), (4, 4), (12, 3)]),
    head_dim=st.sampled_from([1, 5, 16, 24, 64, 65]),
    state=st.sampled_from([1, 3, 16, 20, 40]),
    chunk=st.sampled_from([None, 1, 5, 16, 32]),
)
def test_agrees_with_the_reference(
    batch: int, length: int, heads: tuple[int, int], head_dim: int, state: int, chunk: int | None
) -> None:
    tensors = inputs(batch, length, heads[0], head_dim, heads[1], state)
    assert_agrees(lambda *t: output_and_state(*t, chunk=chunk), tensors, TOLERANCE)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 10),
    heads=st.sampled_from([(1, 1), (6, 2), (4, 4)]),
    head_dim=st.sampled_from([1, 16, 40, 64, 130]),
    given_count=st.sampled_from([5, 6, 7]),
)
def test_few_positions_without_gradients_agree_too(
    length: int, heads: tuple[int, int], head_dim: int, given_count: int
) -> None:
    """They walk over the states in memory."""
    tensors = inputs(2, length, heads[0], head_dim, heads[1], 9)[:given_count]
    with poisoned_memory():
        y, final = state_space_dual(*tensors, *(None,) * (7 - given_count), return_state=True)
    with force_backend("reference"):
        doubles = [tensor.double() for tensor in tensors] + [None] * (7 - given_count)
        expected, expected_final = state_space_dual(*doubles, return_state=True)
    for got, exact in ((y, expected), (final, expected_final)):
        assert (got.double() - exact).norm() <= 1e-6 * exact.norm() + 1e-6


@settings(max_examples=15, deadline=None, derandomize=True)
@given(length=st.integers(1, 40), chunk=st.integers(1, 41))
def test_the_chunk_changes_nothing_in_float64(length: int, chunk: int) -> None:
    tensors = inputs(2, length, 4, 3, 2, 5, torch.float64)
    with force_backend("reference"):
        expected = output_and_state(*tensors)
    torch.testing.assert_close(output_and_state(*tensors, chunk=chunk), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("given_count", [5, 6, 7])
@pytest.mark.parametrize("length", [3, 40])
def test_agrees_without_the_optional_inputs(given_count: int, length: int) -> None:
    assert_agrees(lambda *t: state_space_dual(*t), inputs(2, length, 4, 8, 2, 16)[:given_count], TOLERANCE)


@pytest.mark.parametrize("length", [2, 40])
def test_agrees_where_the_final_state_alone_is_used(length: int) -> None:
    x, delta, A, B, C, _, initial = inputs(2, length, 4, 8, 2, 16)

    def op(*rest: Tensor) -> Tensor:
        return state_space_dual(*rest[:4], C.to(rest[0]), None, rest[4], True)[1]

    assert_agrees(op, [x, delta, A, B, initial], TOLERANCE)


@pytest.mark.parametrize("length", [1, 3, 40])
def test_agrees_for_any_layout_of_the_inputs(length: int) -> None:
    x, delta, A, B, C, D, initial = leaves = inputs(2, length, 4, 8, 2, 16)
    wide = torch.cat([x.flatten(2), B.flatten(2), C.flatten(2), delta], 2)  # as a projection has them
    x_part, B_part, C_part, delta_part = wide.split([32, 32, 32, 4], 2)
    turned = initial.mT.contiguous().mT
    expected = output_and_state(*leaves)
    sliced = x_part.view_as(x), delta_part, A, B_part.view_as(B), C_part.view_as(C), D.repeat(2)[::1][:4], turned
    assert torch.equal(output_and_state(*sliced), expected)
    odd = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in leaves]
    assert torch.equal(output_and_state(*odd), expected)
    assert_agrees(lambda *t: state_space_dual(*t).transpose(1, 3), leaves, TOLERANCE)  # a strided gradient comes back
    assert_agrees(lambda *t: state_space_dual(*t).sum((1, 3)), leaves, TOLERANCE)  # an expanded one


@settings(max_examples=15, deadline=None, derandomize=True)
@given(length=st.integers(2, 90), cut=st.integers(1, 89))
def test_pieces_that_hand_the_state_on_are_one_pass(length: int, cut: int) -> None:
    cut = min(cut, length - 1)
    x, delta, A, B, C, D, initial = inputs(2, length, 4, 6, 2, 18)
    whole, final = state_space_dual(x, delta, A, B, C, D, initial, return_state=True)
    parts, state = [], initial
    for piece in (slice(0, cut), slice(cut, length)):
        sequences = (x[:, piece], delta[:, piece]), (B[:, piece], C[:, piece])
        y, state = state_space_dual(*sequences[0], A, *sequences[1], D, state, return_state=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=2e-5)


def test_an_empty_sequence_hands_the_state_through() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 0, 4, 5, 2, 8)]
    y, final = state_space_dual(*tensors, return_state=True)
    assert y.shape == (2, 0, 4, 5) and torch.equal(final, tensors[-1])
    gradients = torch.autograd.grad(final.sum(), [tensors[2], tensors[-1]])
    assert torch.equal(gradients[0], torch.zeros(4)) and torch.equal(gradients[1], torch.ones(2, 4, 8, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strong_and_weak_decays_side_by_side_lose_no_digits(dtype: torch.dtype) -> None:
    """Sums of delta A reach -1e6 within a chunk: their differences alone would be noise in float32."""
    x, delta, A, B, C, D, initial = inputs(1, 48, 2, 16, 1, 16, dtype)
    delta = torch.where(torch.arange(48)[:, None] % 7 == 0, 3e4, 1e-3).to(dtype).expand(1, 48, 2).contiguous()
    x = torch.where(delta[..., None] > 1, 0, x)
    leaves = [tensor.requires_grad_() for tensor in (x, delta, A, B, C, D, initial)]
    y, final = state_space_dual(*leaves, return_state=True)
    with force_backend("reference"):
        expected, expected_final = state_space_dual(*(leaf.double() for leaf in leaves), return_state=True)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(final.double(), expected_final, rtol=1e-5, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum() + final.sum(), leaves))


@pytest.mark.parametrize("length", [2, 20])
def test_a_strong_decay_forgets_everything_and_gives_exact_zeros(length: int) -> None:
    x, delta, A, B, C, _, initial = inputs(1, length, 2, 16, 1, 8)
    y, final = state_space_dual(x, delta * 0 + 1e3, A * 1e5, B * 0, C, None, initial, return_state=True)
    assert torch.equal(y, torch.zeros_like(y)) and torch.equal(final, torch.zeros_like(final))


def test_growing_states_are_those_of_the_reference() -> None:
    tensors = inputs(2, 40, 2, 16, 1, 8)
    tensors[2] = 0.2 * tensors[2].neg()
    assert_agrees(output_and_state, tensors, TOLERANCE)


@pytest.mark.parametrize("length", [2, 40])
@pytest.mark.parametrize("which", range(7))
def test_nan_is_not_lost(which: int, length: int) -> None:
    tensors = inputs(1, length, 2, 20, 1, 8)
    tensors[which].flatten()[0] = math.nan
    got = output_and_state(*tensors)
    with force_backend("reference"):
        expected = output_and_state(*tensors)
    assert expected.isnan().any() and got[expected.isnan()].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beside", [None, torch.float32])
def test_halves_are_computed_in_float32(dtype: torch.dtype, beside: torch.dtype | None) -> None:
    parameters = {2, 5, 6}  # A, D and the state may stay float32
    drawn = inputs(2, 20, 4, 6, 2, 8)
    leaves = [t.to(beside or dtype if i in parameters else dtype).requires_grad_() for i, t in enumerate(drawn)]
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    y, final = state_space_dual(*leaves, return_state=True)
    expected, expected_final = state_space_dual(*wide, return_state=True)
    assert y.dtype is dtype and torch.equal(y, expected.to(dtype))
    assert final.dtype is torch.float32 and torch.equal(final, expected_final)
    gradient = torch.randn(2, 20, 4, 6).to(dtype)
    got = torch.autograd.grad(y, leaves, gradient)
    for leaf, half, full in zip(leaves, got, torch.autograd.grad(expected, wide, gradient.float()), strict=True):
        assert half.dtype is leaf.dtype and torch.equal(half, full.to(leaf.dtype))


def test_autocast_computes_in_float32() -> None:
    x, delta, A, B, C, D, initial = inputs(2, 20, 4, 6, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = state_space_dual(x.bfloat16(), delta, A, B.bfloat16(), C, D, initial, return_state=True)
    assert y.dtype is final.dtype is torch.float32
    assert torch.equal(y, state_space_dual(x.bfloat16().float(), delta, A, B.bfloat16().float(), C, D, initial))


class Results(Allocations):
    """The number of entries of every tensor that any operation gives."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.sizes += [tensor.numel() for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_grows_with_the_length_not_with_its_square(dtype: torch.dtype) -> None:
    sizes = []
    for length in (256, 512):
        leaves = [tensor.requires_grad_() for tensor in inputs(1, length, 4, 16, 1, 16, dtype)]
        with Results() as made:
            state_space_dual(*leaves).sum().backward()
        sizes.append(max(made.sizes))
    assert sizes[0] >= leaves[0].numel() / 2 and sizes[1] <= 2 * sizes[0]


def test_only_the_gradients_asked_for_come_back() -> None:
    tensors = inputs(1, 4, 2, 6, 1, 4)
    tensors[2].requires_grad_()
    state_space_dual(*tensors).sum().backward()
    assert tensors[2].grad is not None and all(tensor.grad is None for tensor in tensors if tensor is not tensors[2])
    assert not state_space_dual(*inputs(1, 4, 2, 6, 1, 4)).requires_grad


def test_a_second_derivative_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 3, 2, 4, 1, 4)]
    with pytest.raises(InputError, match=r"state_space_dual.*second derivative.*force_backend"):
        torch.autograd.grad(state_space_dual(*leaves).sum(), leaves, create_graph=True)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda t: t[0], r"argument x is torch.float32 of shape \(4, 6, 5\), expected .*\[batch, length, heads"),
        (0, lambda t: t.long(), "argument x is torch.int64 of shape .* expected a floating-point"),
        (1, lambda t: t[:, :3], r"argument delta has shape \(2, 3, 6\), expected .*\(2, 4, 6\)"),
        (2, lambda t: t[:5], r"argument A has shape \(5,\), expected .*\(6,\)"),
        (3, lambda t: t.repeat(1, 1, 2, 1), r"argument B has shape \(2, 4, 4, 8\), expected .*divisor of the 6 heads"),
        (3, lambda t: t[:, :3], r"argument B has shape \(2, 3, 2, 8\)"),
        (4, lambda t: t[..., :7], r"argument C has shape \(2, 4, 2, 7\)"),
        (4, lambda t: t.double(), r"argument C is torch.float64, expected torch.float32.*C.to\(torch.float32\)"),
        (5, lambda t: t[:, None], r"argument D has shape \(6, 1\)"),
        (6, lambda t: t.mT, r"argument initial has shape \(2, 6, 5, 8\)"),
        (6, lambda t: t.to("meta"), "argument initial is on meta, expected cpu"),
        (3, lambda t: [1.0], "argument B is a list, expected a tensor"),
    ],
)
def test_wrong_input_is_named(which: int, change, message: str) -> None:
    tensors = inputs(2, 4, 6, 5, 2, 8)
    tensors[which] = change(tensors[which])
    with pytest.raises(InputError, match="state_space_dual: " + message):
        state_space_dual(*tensors)


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
def test_a_wrong_chunk_is_named(chunk) -> None:
    with pytest.raises(InputError, match=r"state_space_dual: argument chunk is .*, expected a whole number"):
        state_space_dual(*inputs(1, 4, 2, 4, 1, 4), chunk=chunk)
