"""The causal convolution: its definition, and the compiled version against it."""

import math
from functools import partial

import pytest
import torch
from agreement import assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import causal_conv1d, force_backend, workers

TOLERANCE = 5e-6  # relative; a short sum of random signs may cancel to a few per cent of its terms


def inputs(batch: int, length: int, channels: int, kernel: int) -> list[Tensor]:
    """x, weight, bias, initial."""
    draw = torch.Generator().manual_seed(0)
    shapes = (batch, length, channels), (channels, kernel), (channels,), (batch, kernel - 1, channels)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def output_and_state(*tensors: Tensor, activation: str | None) -> Tensor:
    y, final = causal_conv1d(*tensors, return_state=True, activation=activation)
    return torch.cat([y.flatten(), final.flatten()])


@pytest.mark.parametrize("activation", [None, "silu"])
def test_the_reference_is_torchs_convolution(activation: str | None) -> None:
    x, weight, bias, _ = (tensor.double() for tensor in inputs(2, 9, 5, 4))
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=5)[..., :9]
    expected = expected.transpose(1, 2)
    if activation == "silu":
        expected = torch.nn.functional.silu(expected)
    with force_backend("reference"):
        torch.testing.assert_close(causal_conv1d(x, weight, bias, activation=activation), expected)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_the_reference_has_the_gradients_of_its_outputs(activation: str | None) -> None:
    tensors = [tensor.double().requires_grad_() for tensor in inputs(2, 2, 3, 4)]
    with force_backend("reference"):
        assert torch.autograd.gradcheck(partial(output_and_state, activation=activation), tensors)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([0, 1, 2, 3]),
    length=st.sampled_from([0, 1, 2, 3, 7, 31, 64]),
    channels=st.sampled_from([1, 5, 16, 17, 48]),
    kernel=st.sampled_from([1, 2, 3, 4, 7]),
    activation=st.sampled_from([None, "silu"]),
)
def test_agrees_with_the_reference(batch: int, length: int, channels: int, kernel: int, activation: str | None) -> None:
    tensors = inputs(batch, length, channels, kernel)
    assert_agrees(partial(output_and_state, activation=activation), tensors, TOLERANCE)


@pytest.mark.parametrize("given_count", [2, 3, 4])
def test_agrees_without_the_optional_inputs_and_outputs(given_count: int) -> None:
    tensors = inputs(2, 19, 24, 4)[:given_count]
    assert_agrees(partial(causal_conv1d, activation="silu"), tensors, TOLERANCE)


def test_agrees_for_any_layout_of_the_inputs() -> None:
    x, weight, bias, initial = inputs(3, 21, 40, 4)
    op = partial(output_and_state, activation="silu")
    expected = op(x, weight, bias, initial)
    half = torch.cat([x, x], 2)[..., 40:]
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    others = weight.t().contiguous().t(), bias.repeat_interleave(2)[::2], initial.transpose(0, 1).contiguous()
    for layout in (half, turned):
        assert torch.equal(op(layout, *others[:2], others[2].transpose(0, 1)), expected)
    assert_agrees(lambda *t: causal_conv1d(*t).transpose(1, 2), [x, weight, bias, initial], TOLERANCE)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(length=st.integers(2, 20), cut=st.integers(1, 19), kernel=st.integers(1, 5))
def test_pieces_that_hand_the_state_on_are_one_pass(length: int, cut: int, kernel: int) -> None:
    cut = min(cut, length - 1)
    x, weight, bias, initial = inputs(2, length, 18, kernel)
    whole, final = causal_conv1d(x, weight, bias, initial, True, "silu")
    first, kept = causal_conv1d(x[:, :cut], weight, bias, initial, True, "silu")
    rest, last = causal_conv1d(x[:, cut:], weight, bias, kept, True, "silu")
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(last, final)


def test_no_output_depends_on_a_later_input() -> None:
    x, weight, bias, _ = inputs(1, 12, 3, 4)
    changed = x.clone()
    changed[:, 7:] += 1
    y, y_changed = causal_conv1d(x, weight, bias), causal_conv1d(changed, weight, bias)
    assert torch.equal(y[:, :7], y_changed[:, :7]) and not torch.equal(y[:, 7], y_changed[:, 7])


def test_extreme_values() -> None:
    x = torch.tensor([[[-1e30, 1e30, -200.0, 200.0, math.nan, 0.0]]])
    weight = torch.ones(6, 1)
    y = causal_conv1d(x, weight, activation="silu").flatten()
    assert y[1] == 1e30 and y[3] == 200 and y[4].isnan() and y[5] == 0
    assert abs(y[0]) == 0 and abs(y[2]) == 0


def test_the_bits_depend_neither_on_the_call_nor_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)  # nanosecond: every call is worth all threads
    tensors, before = [tensor.requires_grad_() for tensor in inputs(3, 33, 70, 4)], torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            y = causal_conv1d(*tensors, activation="silu")
            runs.append([y.detach(), *torch.autograd.grad(y.square().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(runs[0], run, strict=True))


def test_a_second_derivative_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 3, 2, 4)]
    with pytest.raises(InputError, match=r"causal_conv1d.*second derivative.*force_backend"):
        torch.autograd.grad(causal_conv1d(*leaves).sum(), leaves, create_graph=True)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda t: t[0], r"argument x has shape \(5, 6\), expected .*\[batch, length, channels\]"),
        (1, lambda t: t[:5], r"argument weight has shape \(5, 4\), expected .*channels = 6"),
        (1, lambda t: t.half(), "argument weight is torch.float16, expected torch.float32"),
        (2, lambda t: t[:1], r"argument bias has shape \(1,\)"),
        (3, lambda t: t[:, :2], r"argument initial has shape \(2, 2, 6\), expected .*\(2, 3, 6\)"),
    ],
)
def test_wrong_input_is_named(which: int, change, message: str) -> None:
    tensors = inputs(2, 5, 6, 4)
    tensors[which] = change(tensors[which])
    with pytest.raises(InputError, match="causal_conv1d: " + message):
        causal_conv1d(*tensors)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(InputError, match="argument activation is 'relu', expected None or 'silu'"):
        causal_conv1d(*inputs(1, 2, 3, 4), activation="relu")
