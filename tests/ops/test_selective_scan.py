"""The selective scan: its definition, and the compiled version against it."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agreement import Allocations, assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import force_backend, selective_scan, workers
from verim.ops.selective_scan.reference import selective_scan_reference

TOLERANCE = 5e-6  # relative; a short sum of random signs may cancel to a few per cent of its terms


def inputs(batch: int, length: int, channels: int, state: int, seed: int = 0) -> list[Tensor]:
    """u, delta, A, B, C, D, initial."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    delta = torch.nn.functional.softplus(normal(batch, length, channels) - 1)
    A = -0.5 - 4 * torch.rand(channels, state, generator=draw)
    B, C = normal(batch, length, state), normal(batch, length, state)
    D, initial = normal(channels), normal(batch, channels, state)
    return [normal(batch, length, channels), delta, A, B, C, D, initial]


def output_and_state(*tensors: Tensor) -> Tensor:
    y, final = selective_scan(*tensors, return_state=True)
    return torch.cat([y.flatten(), final.flatten()])


def output_alone(*tensors: Tensor) -> Tensor:
    return selective_scan(*tensors)


def state_alone(*tensors: Tensor) -> Tensor:
    return selective_scan(*tensors, return_state=True)[1]


def test_the_reference_solves_the_differential_equation_it_discretises() -> None:
    # h' = A h + B u with constant input, zero-order hold in A and an Euler step in B: a geometric series.
    steps, a, delta = 7, -0.3, 0.25
    ones = torch.ones(1, steps, 1, dtype=torch.float64)
    y, final = selective_scan_reference(ones, ones * delta, torch.tensor([[a]]).double(), ones, ones, None, None)
    expected = delta * (1 - math.exp(a * delta * steps)) / (1 - math.exp(a * delta))
    torch.testing.assert_close(y[0, -1, 0].item(), expected)
    torch.testing.assert_close(final.item(), expected)


def test_the_reference_has_the_gradients_of_its_outputs() -> None:
    tensors = [tensor.double().requires_grad_() for tensor in inputs(2, 3, 2, 2)]
    with force_backend("reference"):
        assert torch.autograd.gradcheck(output_and_state, tensors)
        assert torch.autograd.gradgradcheck(output_and_state, tensors)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([0, 1, 2, 3]),
    length=st.sampled_from([1, 2, 7, 8, 9, 31]),
    channels=st.sampled_from([1, 5, 16, 17, 48, 150]),
    state=st.sampled_from([1, 2, 4, 5, 8, 16, 20, 33]),
)
def test_agrees_with_the_reference(batch: int, length: int, channels: int, state: int) -> None:
    assert_agrees(output_and_state, inputs(batch, length, channels, state), TOLERANCE)


@pytest.mark.parametrize("given_count", [5, 6, 7])
@pytest.mark.parametrize("op", [output_alone, state_alone])
def test_agrees_without_the_optional_inputs_and_outputs(op, given_count: int) -> None:
    tensors = inputs(2, 19, 24, 8)[:given_count]
    if op is state_alone:  # which D and C have no part in
        fixed = {4: tensors[4]} | ({5: tensors[5]} if given_count > 5 else {})
        tensors = [tensor for i, tensor in enumerate(tensors) if i not in fixed]

        def op(*rest: Tensor) -> Tensor:
            initial = rest[4] if given_count == 7 else None
            return state_alone(*rest[:4], fixed[4].to(rest[0]), None, initial)

    assert_agrees(op, tensors, TOLERANCE)


def test_agrees_for_any_layout_of_the_inputs() -> None:
    u, delta, A, B, C, D, initial = inputs(3, 21, 40, 16)
    wide = torch.cat([u, delta], 2)
    sliced = wide[..., :40], wide[..., 40:]  # as the two halves of a projection
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (B, C)]
    other = A.t().contiguous().t(), D.repeat_interleave(2)[::2], initial.transpose(1, 2).contiguous().transpose(1, 2)
    strided_channels = u.transpose(1, 2).contiguous().transpose(1, 2)
    expected = output_and_state(u, delta, A, B, C, D, initial)
    for first in (sliced[0], strided_channels):
        assert torch.equal(output_and_state(first, sliced[1], other[0], *turned, *other[1:]), expected)
    leaves = [u, delta, A, B, C, D, initial]
    assert_agrees(lambda *t: selective_scan(*t).transpose(1, 2), leaves, TOLERANCE)  # a strided gradient comes back
    expanded = [tensor.detach().requires_grad_() for tensor in leaves]
    ones = torch.autograd.grad(selective_scan(*expanded).sum(), expanded)
    weighted = torch.autograd.grad((selective_scan(*expanded) * torch.ones(3, 21, 40)).sum(), expanded)
    assert all(torch.equal(left, right) for left, right in zip(ones, weighted, strict=True))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(length=st.integers(2, 40), cut=st.integers(1, 39), state=st.sampled_from([3, 8, 16]))
def test_pieces_that_hand_the_state_on_are_one_pass(length: int, cut: int, state: int) -> None:
    cut = min(cut, length - 1)
    u, delta, A, B, C, D, initial = inputs(2, length, 18, state)
    whole, final = selective_scan(u, delta, A, B, C, D, initial, return_state=True)
    first, kept = selective_scan(*(t[:, :cut] for t in (u, delta)), A, B[:, :cut], C[:, :cut], D, initial, True)
    rest, last = selective_scan(*(t[:, cut:] for t in (u, delta)), A, B[:, cut:], C[:, cut:], D, kept, True)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(last, final)


def test_an_empty_sequence_hands_the_state_through() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 0, 5, 8)]
    y, final = selective_scan(*tensors, return_state=True)
    assert y.shape == (2, 0, 5) and torch.equal(final, tensors[-1])
    gradients = torch.autograd.grad(final.sum(), [tensors[2], tensors[-1]])
    assert torch.equal(gradients[0], torch.zeros(5, 8)) and torch.equal(gradients[1], torch.ones(2, 5, 8))


def test_a_strong_decay_forgets_everything_and_gives_exact_zeros() -> None:
    u, delta, A, B, C, _, initial = inputs(1, 5, 20, 8)
    y, final = selective_scan(u, delta * 0 + 1e3, A * 1e5, B * 0, C, None, initial, return_state=True)
    assert torch.equal(y, torch.zeros_like(y)) and torch.equal(final, torch.zeros_like(final))


@pytest.mark.parametrize("which", range(7))
def test_nan_in_gives_nan_out(which: int) -> None:
    tensors = inputs(1, 9, 20, 8)
    tensors[which].flatten()[0] = math.nan
    got, expected = output_and_state(*tensors), None
    with force_backend("reference"):
        expected = output_and_state(*tensors)
    assert expected.isnan().any()
    assert torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beside", [None, torch.float32])
def test_halves_are_computed_in_float32(dtype: torch.dtype, beside: torch.dtype | None) -> None:
    parameters = {2, 5, 6}  # A, D and the state may stay float32
    given = inputs(2, 20, 18, 8)
    leaves = [t.to(beside or dtype if i in parameters else dtype).requires_grad_() for i, t in enumerate(given)]
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    y, final = selective_scan(*leaves, return_state=True)
    expected, expected_final = selective_scan(*wide, return_state=True)
    assert y.dtype is dtype and torch.equal(y, expected.to(dtype))
    assert final.dtype is torch.float32 and torch.equal(final, expected_final)
    gradient = torch.randn(2, 20, 18).to(dtype)
    got = torch.autograd.grad(y, leaves, gradient)
    for leaf, half, full in zip(leaves, got, torch.autograd.grad(expected, wide, gradient.float()), strict=True):
        assert half.dtype is leaf.dtype and torch.equal(half, full.to(leaf.dtype))
    with force_backend("reference"):
        same, same_final = selective_scan(*leaves, return_state=True)
    assert same.dtype is dtype and same_final.dtype is torch.float32
    torch.testing.assert_close(same, y)


def test_autocast_computes_in_float32() -> None:
    u, delta, A, B, C, D, initial = inputs(2, 20, 18, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = selective_scan(u.bfloat16(), delta, A, B.bfloat16(), C, D, initial, return_state=True)
    assert y.dtype is final.dtype is torch.float32
    assert torch.equal(y, selective_scan(u.bfloat16().float(), delta, A, B.bfloat16().float(), C, D, initial))


def results(tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y, final = selective_scan(*leaves, return_state=True)
    return [y.detach(), final.detach(), *torch.autograd.grad(y.square().sum() + final.sum(), leaves)]


def test_the_bits_depend_neither_on_the_call_nor_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)  # nanosecond: every call is worth all threads
    tensors, before = inputs(3, 33, 300, 16), torch.get_num_threads()
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
    all_inputs, before = [inputs(2, 40, 100, 8, seed) for seed in range(6)], torch.get_num_threads()
    expected = [results(tensors) for tensors in all_inputs]
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(6) as callers:
            together = list(callers.map(results, all_inputs * 3))
    finally:
        torch.set_num_threads(before)
    for run, alone in zip(together, expected * 3, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(run, alone, strict=True))


@pytest.mark.parametrize("state", [4, 16, 64])
def test_memory_stays_far_below_all_the_states(state: int) -> None:
    batch, length, channels = 2, 1024, 128
    cells = batch * length * channels
    leaves = [tensor.requires_grad_() for tensor in inputs(batch, length, channels, state)]
    with Allocations() as forward:
        y = selective_scan(*leaves)
    with Allocations() as backward:
        y.backward(torch.ones_like(y))
    assert forward.sizes and backward.sizes
    outputs = cells, 2 * cells + 2 * batch * length * state + 2 * batch * channels * (state + 1)
    assert sum(forward.sizes) + sum(backward.sizes) - sum(outputs) <= 4 * cells
    with Allocations() as inference, torch.no_grad():
        selective_scan(*leaves)
    assert sum(inference.sizes) <= 1.2 * cells  # nothing is kept that no gradient asks for


def test_only_the_gradients_asked_for_come_back() -> None:
    tensors = inputs(1, 4, 6, 4)
    tensors[2].requires_grad_()
    selective_scan(*tensors).sum().backward()
    assert tensors[2].grad is not None and all(tensor.grad is None for tensor in tensors if tensor is not tensors[2])
    assert not selective_scan(*inputs(1, 4, 6, 4)).requires_grad


def test_a_second_derivative_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 3, 2, 4)]
    with pytest.raises(InputError, match=r"selective_scan.*second derivative.*force_backend"):
        torch.autograd.grad(selective_scan(*leaves).sum(), leaves, create_graph=True)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda t: t[0], r"argument u has shape \(4, 6\), expected .*\[batch, length, channels\]"),
        (0, lambda t: t.long(), "argument u is torch.int64, expected a floating-point"),
        (1, lambda t: t[:, :3], r"argument delta has shape \(2, 3, 6\), expected .*\(2, 4, 6\)"),
        (2, lambda t: t[:5], r"argument A has shape \(5, 8\), expected .*channels = 6"),
        (2, lambda t: t[:, :0], r"argument A has shape \(6, 0\), expected .*at least 1"),
        (3, lambda t: t[..., :7], r"argument B has shape \(2, 4, 7\)"),
        (4, lambda t: t.double(), r"argument C is torch.float64, expected torch.float32.*C.to\(torch.float32\)"),
        (1, lambda t: t.bfloat16(), "argument delta is torch.bfloat16, expected torch.float32"),
        (5, lambda t: t[:, None], r"argument D has shape \(6, 1\)"),
        (6, lambda t: t.transpose(1, 2), r"argument initial has shape \(2, 8, 6\)"),
        (6, lambda t: t.to("meta"), "argument initial is on meta, expected cpu"),
    ],
)
def test_wrong_input_is_named(which: int, change, message: str) -> None:
    tensors = inputs(2, 4, 6, 8)
    tensors[which] = change(tensors[which])
    with pytest.raises(InputError, match="selective_scan: " + message):
        selective_scan(*tensors)


def test_beside_halves_only_parameters_and_the_state_may_be_float32() -> None:
    u, delta, A, B, C, D, initial = inputs(2, 4, 6, 8)
    u, delta, C = u.bfloat16(), delta.bfloat16(), C.bfloat16()
    with pytest.raises(InputError, match=r"selective_scan: argument B is torch.float32, expected torch.bfloat16"):
        selective_scan(u, delta, A, B, C, D, initial)
