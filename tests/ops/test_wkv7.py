"""RWKV-7's state evolution: its definition, and the compiled version against it."""

import itertools

import pytest
import torch
from agreement import Allocations, assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from verim.errors import InputError
from verim.ops import force_backend, wkv7, workers
from verim.ops.wkv7.reference import wkv7_reference


def inputs(batch: int, length: int, heads: int, head_dim: int, seed: int = 0) -> list[Tensor]:
    """r, w, k, v, a, b, state, as RWKV-7 makes them."""
    draw = torch.Generator().manual_seed(seed)
    r, w, k, v, removed, rate = torch.randn(6, batch, length, heads, head_dim, generator=draw).unbind()
    removed, w = normalize(removed, dim=-1), torch.exp(-0.6065 * w.sigmoid())
    state = torch.randn(batch, heads, head_dim, head_dim, generator=draw)
    return [r, w, k, v, -removed, removed * rate.sigmoid(), state]


def output_and_state(*tensors: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in wkv7(*tensors, return_state=True)])


def test_the_reference_is_the_published_recurrence() -> None:
    """S_t = S_{t-1} (diag(w_t) - k̂_tᵀ (a_t ⊙ k̂_t)) + v_tᵀ k_t, y_t = S_t r_t, with values in the rows of S."""
    r, w, k, v, minus_removed, corrected, state = (t.double() for t in inputs(2, 7, 2, 5))
    y, final = wkv7_reference(r, w, k, v, minus_removed, corrected, state)
    for row, head in itertools.product(range(2), range(2)):
        S = state[row, head].T
        for t in range(7):
            at = row, t, head
            S = S @ (w[at].diag() - torch.outer(-minus_removed[at], corrected[at])) + torch.outer(v[at], k[at])
            torch.testing.assert_close(y[at], S @ r[at])
        torch.testing.assert_close(final[row, head], S.T)


def test_the_delta_rule_replaces_what_a_key_holds() -> None:
    """With a = -k, b = k, w = 1 and orthonormal keys, each key reads the value last written under it."""
    keys = torch.eye(4)[[0, 1, 0, 2, 1]].view(1, 5, 1, 4)
    v = torch.randn(1, 5, 1, 4, generator=torch.Generator().manual_seed(0))
    _, final = wkv7(keys, torch.ones_like(v), keys, v, -keys, keys, return_state=True)
    torch.testing.assert_close(final[0, 0], torch.stack([v[0, 2, 0], v[0, 4, 0], v[0, 3, 0], torch.zeros(4)]))


def test_the_reference_has_the_gradients_of_its_outputs() -> None:
    tensors = [tensor.double().requires_grad_() for tensor in inputs(1, 3, 2, 3)]
    with force_backend("reference"):
        assert torch.autograd.gradcheck(output_and_state, tensors)
        assert torch.autograd.gradgradcheck(output_and_state, tensors)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([0, 1, 2]),
    length=st.sampled_from([1, 2, 15, 16, 17, 40]),
    heads=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([1, 5, 16, 17, 64, 70, 130]),
    with_state=st.booleans(),
)
def test_agrees_with_the_reference(batch: int, length: int, heads: int, head_dim: int, with_state: bool) -> None:
    tensors = inputs(batch, length, heads, head_dim)
    assert_agrees(output_and_state, tensors if with_state else tensors[:6])


@pytest.mark.parametrize("part", [0, 1])
def test_agrees_for_each_output_alone(part: int) -> None:
    tensors = inputs(2, 37, 2, 24)
    if part == 1:  # which r has no part in
        r = tensors.pop(0)
        assert_agrees(lambda *t: wkv7(r.to(t[0]), *t, return_state=True)[1], tensors)
    else:
        assert_agrees(wkv7, tensors)


def test_agrees_for_any_layout_of_the_inputs() -> None:
    *tensors, state = inputs(2, 19, 3, 20)
    expected = output_and_state(*tensors, state)
    together = torch.cat(tensors, 3).chunk(6, 3)  # as of one projection
    by_head = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]
    by_channel = [tensor.transpose(1, 3).contiguous().transpose(1, 3) for tensor in tensors]
    turned = state.transpose(2, 3).contiguous().transpose(2, 3)
    for layout in (together, by_head, by_channel):
        assert torch.equal(output_and_state(*layout, turned), expected)
    assert_agrees(lambda *t: wkv7(*t).transpose(1, 3), [*tensors, state])  # strided gradients come back
    ones = [tensor.detach().requires_grad_() for tensor in tensors]
    expanded = torch.autograd.grad(wkv7(*ones).sum(), ones)
    weighted = torch.autograd.grad((wkv7(*ones) * torch.ones(2, 19, 3, 20)).sum(), ones)
    assert all(torch.equal(left, right) for left, right in zip(expanded, weighted, strict=True))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(length=st.integers(2, 40), cut=st.integers(1, 39), head_dim=st.sampled_from([5, 64]))
def test_pieces_that_hand_the_state_on_are_one_pass(length: int, cut: int, head_dim: int) -> None:
    cut = min(cut, length - 1)
    *tensors, state = inputs(2, length, 2, head_dim)
    whole, final = wkv7(*tensors, state, return_state=True)
    first, kept = wkv7(*(t[:, :cut] for t in tensors), state, return_state=True)
    rest, last = wkv7(*(t[:, cut:] for t in tensors), kept, return_state=True)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, final, rtol=1e-5, atol=1e-5)


def test_an_empty_sequence_hands_the_state_through() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 0, 2, 5)]
    y, final = wkv7(*tensors, return_state=True)
    assert y.shape == (2, 0, 2, 5) and torch.equal(final, tensors[-1])
    (gradient,) = torch.autograd.grad((final * 3).sum(), tensors[-1:])
    assert torch.equal(gradient, torch.full((2, 2, 5, 5), 3.0))


def test_nan_in_gives_nan_from_there_on() -> None:
    for which in range(7):
        tensors = inputs(1, 9, 2, 20)
        tensors[which][(0, 0, 0, 3) if which == 6 else (0, 4, 0, 3)] = torch.nan
        y, final = wkv7(*tensors, return_state=True)
        expected, expected_final = wkv7_reference(*tensors)
        assert torch.equal(y.isnan(), expected.isnan()) and expected.isnan().any() and not y[:, :, 1].isnan().any()
        assert torch.equal(final.isnan(), expected_final.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beside", [None, torch.float32])
def test_halves_are_computed_in_float32(dtype: torch.dtype, beside: torch.dtype | None) -> None:
    tensors = inputs(2, 20, 2, 18)
    leaves = [t.to(dtype if i == 0 else beside or dtype).requires_grad_() for i, t in enumerate(tensors)]
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    y, final = wkv7(*leaves, return_state=True)
    expected, expected_final = wkv7(*wide, return_state=True)
    assert y.dtype is dtype and torch.equal(y, expected.to(dtype))
    assert final.dtype is torch.float32 and torch.equal(final, expected_final)
    gradient = torch.randn(y.shape).to(dtype)
    got = torch.autograd.grad(y, leaves, gradient)
    for leaf, half, full in zip(leaves, got, torch.autograd.grad(expected, wide, gradient.float()), strict=True):
        assert half.dtype is leaf.dtype and torch.equal(half, full.to(leaf.dtype))


def test_autocast_computes_in_float32() -> None:
    r, *others = inputs(2, 20, 2, 18)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = wkv7(r.bfloat16(), *others, return_state=True)
    assert y.dtype is final.dtype is torch.float32
    assert torch.equal(y, wkv7(r.bfloat16().float(), *others))


def test_the_bits_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)  # nanosecond: every call is worth all threads
    tensors, before = inputs(2, 20, 3, 70), torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            y, final = wkv7(*leaves, return_state=True)
            runs.append([y, final, *torch.autograd.grad(y.square().sum() + final.sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(runs[0], run, strict=True))


def test_no_tensor_holds_the_states_of_all_steps() -> None:
    batch, length, heads, head_dim = 2, 256, 2, 64
    entries = batch * length * heads * head_dim
    leaves = [tensor.requires_grad_() for tensor in inputs(batch, length, heads, head_dim)[:6]]
    with Allocations() as forward:
        y = wkv7(*leaves)
    with Allocations() as backward:
        y.backward(torch.ones_like(y))
    assert forward.sizes and backward.sizes
    assert max(forward.sizes) <= entries * head_dim // 16  # the checkpoints
    assert max(backward.sizes) <= entries
    with Allocations() as inference, torch.no_grad():
        wkv7(*leaves)
    assert sum(inference.sizes) <= 1.5 * entries  # nothing is kept that no gradient asks for


def test_only_the_gradients_asked_for_come_back() -> None:
    tensors = inputs(1, 4, 1, 6)
    tensors[2].requires_grad_()
    wkv7(*tensors).sum().backward()
    assert tensors[2].grad is not None and all(tensor.grad is None for tensor in tensors if tensor is not tensors[2])
    assert not wkv7(*inputs(1, 4, 1, 6)).requires_grad


def test_a_second_derivative_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 3, 1, 2)]
    with pytest.raises(InputError, match=r"wkv7.*second derivative.*force_backend"):
        torch.autograd.grad(wkv7(*leaves).sum(), leaves, create_graph=True)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda t: t[0], r"argument r is torch.float32 of shape \(4, 3, 6\), expected .*\[batch, length, heads,"),
        (0, lambda t: t.long(), "argument r is torch.int64 of shape .*, expected a floating-point"),
        (1, lambda t: t[:, :3], r"argument w has shape \(2, 3, 3, 6\), expected .*\(2, 4, 3, 6\)"),
        (2, lambda t: t.double(), r"argument k is torch.float64, expected torch.float32.*k.to\(torch.float32\)"),
        (5, lambda t: t.to("meta"), "argument b is on meta, expected cpu"),
        (6, lambda t: t[:, :2], r"argument state has shape \(2, 2, 6, 6\), expected .*\(2, 3, 6, 6\)"),
    ],
)
def test_wrong_input_is_named(which: int, change, message: str) -> None:
    tensors = inputs(2, 4, 3, 6)
    tensors[which] = change(tensors[which])
    with pytest.raises(InputError, match="wkv7: " + message):
        wkv7(*tensors)
