"""RWKV's weighted key-value: its definition, and the compiled version against it."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agreement import Allocations, assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import force_backend, wkv, workers
from verim.ops.wkv.reference import wkv_reference

TERMS = 1.0  # the gradients' terms are about as large as the gradients that come in; where one key wins, they cancel


def inputs(batch: int, length: int, channels: int, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    """k, v, w, u, state."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    k, v = scale * normal(batch, length, channels), normal(batch, length, channels)
    w, u = torch.exp(2 * normal(channels) - 1), normal(channels)
    state = torch.stack([normal(batch, channels), normal(batch, channels).exp(), scale * normal(batch, channels)], 1)
    return [k, v, w, u, state]


def output_and_state(*tensors: Tensor) -> Tensor:
    y, final = wkv(*tensors, return_state=True)
    return torch.cat([y.flatten(), final.flatten()])


def by_the_formula(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Equation 16 with all pairs of positions, each weight divided by the row's largest."""
    t, i = torch.arange(k.shape[1])[:, None], torch.arange(k.shape[1])[None, :]
    age = (t - 1 - i)[None, :, :, None]
    logarithm = torch.where(age < 0, u + k[:, None], -age * w + k[:, None])  # [batch, t, i, channels]
    weight = torch.softmax(logarithm.masked_fill((i > t)[None, :, :, None], -math.inf), 2)
    return (weight * v[:, None]).sum(2)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_both_are_the_published_formula(scale: float) -> None:
    tensors = [tensor.double() for tensor in inputs(2, 40, 21, scale)[:4]]
    exact = by_the_formula(*tensors)
    torch.testing.assert_close(wkv_reference(*tensors, None)[0], exact)
    fast = wkv(*(tensor.float() for tensor in tensors)).double()
    tolerance = 1e-6 + 40 * scale * 2**-23  # m, as large as k, is rounded at each step
    torch.testing.assert_close(fast, exact, rtol=tolerance, atol=tolerance)


def test_the_reference_has_the_gradients_of_its_outputs() -> None:
    tensors = [tensor.double().requires_grad_() for tensor in inputs(2, 4, 3)]
    with force_backend("reference"):
        assert torch.autograd.gradcheck(output_and_state, tensors)
        assert torch.autograd.gradgradcheck(output_and_state, tensors)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([0, 1, 2, 3]),
    length=st.sampled_from([1, 2, 7, 31, 32, 33, 65]),
    channels=st.sampled_from([1, 5, 16, 17, 48, 150, 300]),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]),
    bonus=st.sampled_from([1.0, 100.0]),  # 100: u and w lie apart
)
def test_agrees_with_the_reference(batch: int, length: int, channels: int, scale: float, bonus: float) -> None:
    k, v, w, u, state = inputs(batch, length, channels, scale)
    assert_agrees(output_and_state, [k, v, w, bonus * u, state], terms=TERMS)


@pytest.mark.parametrize("given_count", [4, 5])
@pytest.mark.parametrize("part", [0, 1])
def test_agrees_without_the_optional_input_and_for_each_output_alone(part: int, given_count: int) -> None:
    tensors = inputs(2, 37, 24)[:given_count]
    if part == 1:  # which u has no part in
        u = tensors.pop(3)
        assert_agrees(lambda k, v, w, *state: wkv(k, v, w, u.to(k), *state, return_state=True)[1], tensors, terms=TERMS)
    else:
        assert_agrees(wkv, tensors, terms=TERMS)


def test_the_gradient_of_a_scale_alone_is_that_of_the_largest_weight() -> None:
    k, v, w, u, state = inputs(1, 3, 2)
    k.fill_(-50.0)
    k[0, 1, 0] = 50.0  # the first channel's m comes from there, one step before the end; the second's from the state
    leaves = [tensor.requires_grad_() for tensor in (k, v, w, u, state)]
    largest = wkv(*leaves, return_state=True)[1][:, 2]
    dk, dv, dw, du, dstate = torch.autograd.grad(largest.sum(), leaves)
    assert torch.equal(dk[0], torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(dw, torch.tensor([-1.0, -3.0])) and torch.equal(dstate[0, 2], torch.tensor([0.0, 1.0]))
    assert not dv.any() and not du.any() and not dstate[:, :2].any()


def test_the_same_weights_in_another_scale_give_the_same_gradients() -> None:
    k, v, w, u, state = (tensor.double() for tensor in inputs(2, 5, 3))
    shifted = torch.stack([state[:, 0] * math.exp(2), state[:, 1] * math.exp(2), state[:, 2] - 2], 1)
    grads = []
    for start in (state, shifted):
        leaves = [tensor.float().requires_grad_() for tensor in (k, v, w, u, start)]
        grads.append(torch.autograd.grad(wkv(*leaves).square().sum(), leaves))
    for left, right in zip(grads[0][:4], grads[1][:4], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[0][4][:, 2], grads[1][4][:, 2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[0][4][:, :2], grads[1][4][:, :2] * math.exp(2), rtol=1e-5, atol=1e-6)


def test_agrees_for_any_layout_of_the_inputs() -> None:
    k, v, w, u, state = inputs(3, 35, 40)
    expected = output_and_state(k, v, w, u, state)
    halves = torch.cat([k, v], 2)  # as of one projection
    by_time = k.transpose(0, 1).contiguous().transpose(0, 1)
    by_channel = k.transpose(1, 2).contiguous().transpose(1, 2)
    other = w.repeat_interleave(2)[::2], u.repeat_interleave(2)[::2], state.transpose(1, 2).contiguous().transpose(1, 2)
    for keys in (halves[..., :40], by_time, by_channel):
        assert torch.equal(output_and_state(keys, halves[..., 40:], *other), expected)
    assert_agrees(lambda *t: wkv(*t).transpose(1, 2), [k, v, w, u, state], terms=TERMS)  # strided gradients come back
    ones = [tensor.detach().requires_grad_() for tensor in (k, v, w, u, state)]
    expanded = torch.autograd.grad(wkv(*ones).sum(), ones)
    weighted = torch.autograd.grad((wkv(*ones) * torch.ones(3, 35, 40)).sum(), ones)
    assert all(torch.equal(left, right) for left, right in zip(expanded, weighted, strict=True))
    same = k[:1, :1].expand(3, 35, 40)
    assert torch.equal(wkv(same, v, w, u), wkv(same.contiguous(), v, w, u))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(length=st.integers(2, 70), cut=st.integers(1, 69), scale=st.sampled_from([1.0, 1e4]))
def test_pieces_that_hand_the_state_on_are_one_pass(length: int, cut: int, scale: float) -> None:
    cut = min(cut, length - 1)
    k, v, w, u, state = inputs(2, length, 18, scale)
    whole, final = wkv(k, v, w, u, state, return_state=True)
    first, kept = wkv(k[:, :cut], v[:, :cut], w, u, state, return_state=True)
    rest, last = wkv(k[:, cut:], v[:, cut:], w, u, kept, return_state=True)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(last, final)


def test_the_gradients_through_pieces_are_those_of_one_pass() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(2, 40, 18)]
    k, v, w, u, state = leaves
    whole = torch.autograd.grad(wkv(*leaves).square().sum(), leaves)
    first, kept = wkv(k[:, :11], v[:, :11], w, u, state, return_state=True)
    rest = wkv(k[:, 11:], v[:, 11:], w, u, kept)
    pieces = torch.autograd.grad(first.square().sum() + rest.square().sum(), leaves)
    for left, right in zip(whole, pieces, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_one_step_after_the_other_is_the_whole() -> None:
    k, v, w, u, _ = inputs(2, 9, 18)
    whole, state, outputs = wkv(k, v, w, u), None, []
    for t in range(9):
        y, state = wkv(k[:, t : t + 1], v[:, t : t + 1], w, u, state, return_state=True)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs, 1), whole)
    torch.testing.assert_close(outputs[0], v[:, :1], rtol=1e-6, atol=0.0)  # the mean of one value


def test_an_empty_sequence_hands_the_state_through() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 0, 5)]
    y, final = wkv(*tensors, return_state=True)
    assert y.shape == (2, 0, 5) and torch.equal(final, tensors[-1])
    gradients = torch.autograd.grad(final.sum(), tensors[2:])
    assert not gradients[0].any() and not gradients[1].any() and torch.equal(gradients[2], torch.ones(2, 3, 5))


@pytest.mark.parametrize("lowest", [-math.inf, -1e38])
def test_no_state_is_the_empty_state(lowest: float) -> None:
    k, v, w, u, state = inputs(2, 6, 20)
    state.zero_()[:, 2] = lowest
    for scale in (1.0, 1e4):
        assert torch.equal(output_and_state(scale * k, v, w, u, state), output_and_state(scale * k, v, w, u))
    with force_backend("reference"):
        torch.testing.assert_close(output_and_state(k, v, w, u, state), output_and_state(k, v, w, u))


def test_positions_without_weight_are_left_out() -> None:
    k, v, w, u, _ = inputs(2, 12, 20)
    masked, short = k.clone(), [0, 1, 3, 4, 5, 7, 8, 9, 10]
    masked[:, [2, 6, 11]] = -math.inf
    leaves = [masked.requires_grad_(), v.requires_grad_()]
    y = wkv(*leaves, torch.zeros_like(w), u)  # without decay a gap does not show
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, short], wkv(k[:, short], v[:, short], torch.zeros_like(w), u))
    dk, dv = torch.autograd.grad(y.sum(), leaves)
    assert not dk[:, [2, 6, 11]].any() and not dv[:, [2, 6, 11]].any() and dv.isfinite().all()
    nothing, final = wkv(torch.full_like(k, -math.inf), v, w, u, return_state=True)
    assert (nothing.abs() <= 1.001 * v.abs().amax(1, keepdim=True)).all()  # some mean, where no weight is more than 0
    assert torch.equal(wkv(k, v, w, u, final), wkv(k, v, w, u))  # and nothing of it is left


@pytest.mark.parametrize("k_size", [1e4, 1e30, 3e38])
@pytest.mark.parametrize("w_size", [1e-6, 50.0, 1e4, 1e30])
def test_nothing_overflows(k_size: float, w_size: float) -> None:
    k, v, w, u, state = inputs(1, 40, 20)
    k, state[:, 2] = k.sign() * k_size, state[:, 2].sign() * k_size
    leaves = [tensor.requires_grad_() for tensor in (k, v, w.sigmoid() * w_size, u * 100, state)]
    y, final = wkv(*leaves, return_state=True)
    gradients = torch.autograd.grad(y.sum() + final[:, :2].sum(), leaves)
    assert all(tensor.isfinite().all() for tensor in (y, final, *gradients))
    ratio = (state[:, 0] / state[:, 1]).abs().max()
    assert y.abs().max() <= torch.maximum(v.abs().max(), ratio) * 1.0001  # a mean


def test_a_past_that_grows_is_still_a_mean() -> None:
    k, v, w, u, _ = inputs(1, 300, 20)
    y = wkv(k, v, -w, u)
    torch.testing.assert_close(y, by_the_formula(k, v, -w, u), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", range(5))
def test_nan_in_gives_nan_out(which: int) -> None:
    tensors = inputs(1, 9, 20)
    tensors[which].flatten()[0] = math.nan
    got = output_and_state(*tensors)
    with force_backend("reference"):
        expected = output_and_state(*tensors)
    assert expected.isnan().any()
    if which == 2:  # e^(u - w) brings a NaN of w to the first output already, where the formula has no w yet
        expected[0] = math.nan
    assert torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beside", [None, torch.float32])
def test_halves_are_computed_in_float32(dtype: torch.dtype, beside: torch.dtype | None) -> None:
    k, v, w, u, state = inputs(2, 20, 18)
    halves = [k.to(dtype), v.to(dtype), *(tensor.to(beside or dtype) for tensor in (w, u, state))]
    leaves = [tensor.requires_grad_() for tensor in halves]
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    y, final = wkv(*leaves, return_state=True)
    expected, expected_final = wkv(*wide, return_state=True)
    assert y.dtype is dtype and torch.equal(y, expected.to(dtype))
    assert final.dtype is torch.float32 and torch.equal(final, expected_final)
    gradient = torch.randn(2, 20, 18).to(dtype)
    got = torch.autograd.grad(y, leaves, gradient)
    for leaf, half, full in zip(leaves, got, torch.autograd.grad(expected, wide, gradient.float()), strict=True):
        assert half.dtype is leaf.dtype and torch.equal(half, full.to(leaf.dtype))


def test_autocast_computes_in_float32() -> None:
    k, v, w, u, state = inputs(2, 20, 18)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = wkv(k.bfloat16(), v, w, u, state, return_state=True)
    assert y.dtype is final.dtype is torch.float32
    assert torch.equal(y, wkv(k.bfloat16().float(), v, w, u, state))


def results(tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y, final = wkv(*leaves, return_state=True)
    return [y.detach(), final.detach(), *torch.autograd.grad(y.square().sum() + final.sum(), leaves)]


def test_the_bits_depend_neither_on_the_call_nor_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)  # nanosecond: every call is worth all threads
    tensors, before = inputs(3, 40, 300), torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(results(tensors))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(runs[0], run, strict=True))


def test_several_threads_may_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)
    all_inputs, before = [inputs(2, 40, 100, seed=seed) for seed in range(6)], torch.get_num_threads()
    expected = [results(tensors) for tensors in all_inputs]
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(6) as callers:
            together = list(callers.map(results, all_inputs * 3))
    finally:
        torch.set_num_threads(before)
    for run, alone in zip(together, expected * 3, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(run, alone, strict=True))


def test_memory_beside_the_results_is_a_fraction_of_an_input() -> None:
    batch, length, channels = 2, 1024, 256
    cells = batch * length * channels
    leaves = [tensor.requires_grad_() for tensor in inputs(batch, length, channels)]
    with Allocations() as forward:
        y = wkv(*leaves)
    with Allocations() as backward:
        y.backward(torch.ones_like(y))
    assert forward.sizes and backward.sizes
    assert sum(forward.sizes) <= 1.2 * cells and sum(backward.sizes) <= 2.2 * cells
    with Allocations() as inference, torch.no_grad():
        wkv(*leaves)
    assert sum(inference.sizes) <= 1.05 * cells  # nothing is kept that no gradient asks for


def test_only_the_gradients_asked_for_come_back() -> None:
    tensors = inputs(1, 4, 6)
    tensors[2].requires_grad_()
    wkv(*tensors).sum().backward()
    assert tensors[2].grad is not None and all(tensor.grad is None for tensor in tensors if tensor is not tensors[2])
    assert not wkv(*inputs(1, 4, 6)).requires_grad


def test_a_second_derivative_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 3, 2)]
    with pytest.raises(InputError, match=r"wkv.*second derivative.*force_backend"):
        torch.autograd.grad(wkv(*leaves).sum(), leaves, create_graph=True)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda t: t[0], r"argument k has shape \(4, 6\), expected .*\[batch, length, channels\]"),
        (0, lambda t: t.long(), "argument k is torch.int64, expected a floating-point"),
        (1, lambda t: t[:, :3], r"argument v has shape \(2, 3, 6\), expected .*\(2, 4, 6\)"),
        (2, lambda t: t[:5], r"argument w has shape \(5,\), expected \[channels of k\] = \(6,\)"),
        (2, lambda t: t.expand(2, 4, 6), r"argument w has shape \(2, 4, 6\)"),
        (3, lambda t: t.double(), r"argument u is torch.float64, expected torch.float32.*u.to\(torch.float32\)"),
        (3, lambda t: t.bfloat16(), r"argument u is torch.bfloat16, expected torch.float32"),
        (4, lambda t: t[:, :2], r"argument state has shape \(2, 2, 6\), expected .*\(2, 3, 6\)"),
        (4, lambda t: t.to("meta"), "argument state is on meta, expected cpu"),
    ],
)
def test_wrong_input_is_named(which: int, change, message: str) -> None:
    tensors = inputs(2, 4, 6)
    tensors[which] = change(tensors[which])
    with pytest.raises(InputError, match="wkv: " + message):
        wkv(*tensors)
