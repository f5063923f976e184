"""The linear recurrence: its definition, and the compiled version against it."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agreement import Allocations, assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import force_backend, linear_recurrence, workers
from verim.ops.linear_recurrence import cpu


@pytest.fixture
def blocks_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is cut into blocks of 128 numbers, and every call is worth all threads."""
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)
    monkeypatch.setattr(cpu, "BLOCK", 128)
    monkeypatch.setattr(cpu, "STREAMED", 0)  # where rows begin at 64 bytes


def inputs(batch: int, length: int, channels: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """a, b, initial."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype)

    a = normal(batch, length, channels)
    return [a / (1 + a.abs()), normal(batch, length, channels), normal(batch, channels)]


def everything(*tensors: Tensor, reverse: bool = False) -> Tensor:
    h, final = linear_recurrence(*tensors, reverse=reverse, return_state=True)
    return torch.cat([h.flatten(), final.flatten()])


def everything_complex(*pairs: Tensor, reverse: bool = False) -> Tensor:
    return torch.view_as_real(everything(*(torch.view_as_complex(pair) for pair in pairs), reverse=reverse))


def test_the_reference_is_a_geometric_series() -> None:
    ones = torch.ones(1, 9, 1, dtype=torch.float64)
    with force_backend("reference"):
        h, final = linear_recurrence(ones * 0.5, ones, return_state=True)
        back, first = linear_recurrence(ones * 0.5, ones, torch.full((1, 1), 2.0).double(), True, return_state=True)
    torch.testing.assert_close(h.flatten(), 2 - 2 * 0.5 ** torch.arange(1.0, 10.0, dtype=torch.float64))
    assert final.item() == h[0, -1, 0] and first.item() == 2.0 and torch.equal(back, ones * 2)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_reference_has_the_gradients_of_its_outputs(dtype: torch.dtype, reverse: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 3, 2, dtype=dtype)]
    with force_backend("reference"):
        assert torch.autograd.gradcheck(lambda *t: everything(*t, reverse=reverse), tensors)
        assert torch.autograd.gradgradcheck(lambda *t: everything(*t, reverse=reverse), tensors)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([0, 1, 2, 5]),
    length=st.sampled_from([1, 2, 5, 16, 17, 31, 67]),
    channels=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 17, 40, 513]),
    reverse=st.booleans(),
)
def test_agrees_with_the_reference(batch: int, length: int, channels: int, reverse: bool) -> None:
    assert_agrees(lambda *t: everything(*t, reverse=reverse), inputs(batch, length, channels))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([0, 1, 5]),
    length=st.sampled_from([1, 2, 9, 19]),
    channels=st.sampled_from([1, 2, 3, 4, 8, 257]),
    reverse=st.booleans(),
)
def test_complex_numbers_agree_with_the_reference(batch: int, length: int, channels: int, reverse: bool) -> None:
    pairs = [torch.view_as_real(t).clone() for t in inputs(batch, length, channels, dtype=torch.complex64)]
    assert_agrees(lambda *t: everything_complex(*t, reverse=reverse), pairs)


@pytest.mark.usefixtures("blocks_are_short")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 8, 20, 600])
def test_time_cut_into_blocks_agrees(channels: int, reverse: bool) -> None:
    length = 700 // channels + 3
    assert_agrees(lambda *t: everything(*t, reverse=reverse), inputs(1, length, channels))


@pytest.mark.usefixtures("blocks_are_short")
@pytest.mark.parametrize("channels", [1, 30])
def test_complex_time_cut_into_blocks_agrees(channels: int) -> None:
    shape = 1, 300 // channels + 3, channels
    assert_agrees(everything_complex, [torch.view_as_real(t).clone() for t in inputs(*shape, dtype=torch.complex64)])


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float64, 20), (torch.complex128, 1)])
def test_double_precision_has_kernels_too(dtype: torch.dtype, channels: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 21, channels, dtype=dtype)]
    assert torch.autograd.gradcheck(everything, tensors, fast_mode=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("used", [0, 1])
def test_agrees_without_an_initial_state_and_with_one_output(used: int, reverse: bool) -> None:
    def op(a: Tensor, b: Tensor) -> Tensor:
        return linear_recurrence(a, b, reverse=reverse, return_state=True)[used]

    for channels in (1, 24):
        assert_agrees(op, inputs(2, 19, channels)[:2])


@pytest.mark.parametrize("channels", [1, 20])
@pytest.mark.parametrize(
    "shape", ["channels", "1 channels", "length channels", "batch 1 channels", "batch length 1", ""]
)
def test_coefficients_broadcast(shape: str, channels: int) -> None:
    sizes = {"batch": 2, "length": 19, "channels": channels, "1": 1}
    _, b, initial = inputs(2, 19, channels)
    a = torch.rand([sizes[name] for name in shape.split()], generator=torch.Generator().manual_seed(1))
    assert_agrees(everything, [a, b, initial])


def test_agrees_for_any_layout() -> None:
    for channels in (1, 40):
        a, b, initial = inputs(3, 21, channels)
        expected = everything(a, b, initial)
        wide = torch.cat([a, b], 2)
        sliced = wide[..., :channels], wide[..., channels:]
        turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (a, b)]
        strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (a, b)]
        for pair in (sliced, turned, strided, [torch._neg_view(-tensor) for tensor in (a, b)]):
            assert torch.equal(everything(*pair, initial.t().contiguous().t()), expected)
        assert_agrees(lambda *t: linear_recurrence(*t).transpose(1, 2), [a, b, initial])  # a strided gradient
        leaves = [tensor.detach().requires_grad_() for tensor in (a, b, initial)]
        ones = torch.autograd.grad(linear_recurrence(*leaves).sum(), leaves)  # an expanded one
        weighted = torch.autograd.grad((linear_recurrence(*leaves) * torch.ones(3, 21, channels)).sum(), leaves)
        assert all(torch.equal(left, right) for left, right in zip(ones, weighted, strict=True))
    a, b, initial = inputs(2, 9, 3, dtype=torch.complex64)
    lazily = linear_recurrence(a.conj(), b.conj(), initial.conj())
    torch.testing.assert_close(lazily, linear_recurrence(a, b, initial).conj())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(length=st.integers(2, 70), cut=st.integers(1, 69), channels=st.sampled_from([18, 600]), reverse=st.booleans())
def test_pieces_that_hand_the_state_on_are_one_pass(length: int, cut: int, channels: int, reverse: bool) -> None:
    cut = min(cut, length - 1)
    a, b, initial = inputs(5, length, channels)
    whole, final = linear_recurrence(a, b, initial, reverse, return_state=True)
    pieces = [(a[:, :cut], b[:, :cut]), (a[:, cut:], b[:, cut:])]
    first, second = pieces[::-1] if reverse else pieces
    one, kept = linear_recurrence(*first, initial, reverse, return_state=True)
    two, last = linear_recurrence(*second, kept, reverse, return_state=True)
    assert torch.equal(torch.cat([two, one] if reverse else [one, two], 1), whole)
    assert torch.equal(last, final)


@pytest.mark.parametrize("channels", [1, 6])
def test_an_empty_sequence_hands_the_state_through(channels: int) -> None:
    a, b, initial = (tensor.requires_grad_() for tensor in inputs(2, 0, channels))
    h, final = linear_recurrence(a, b, initial, return_state=True)
    assert h.shape == (2, 0, channels) and torch.equal(final, initial)
    assert torch.equal(torch.autograd.grad(final.sum(), initial)[0], torch.ones(2, channels))


@pytest.mark.usefixtures("blocks_are_short")
@pytest.mark.parametrize(("channels", "length"), [(1, 700), (20, 90), (600, 9)])
@pytest.mark.parametrize("factor", [1e20, 0.0, 1e-30, -1.0])
def test_products_beyond_the_range_leave_the_states_right(factor: float, channels: int, length: int) -> None:
    a, b = torch.full((1, length, channels), factor), torch.zeros(1, length, channels)
    assert torch.equal(linear_recurrence(a, b), b)
    b[:, -2:] = 1.0  # the states begin here
    h = linear_recurrence(a, b)
    assert torch.equal(h[:, -2:, 0], torch.tensor([[1.0, 1.0 + factor]])) and not h[:, :-2].any()
    backwards = linear_recurrence(a, b.flip(1), reverse=True)
    assert torch.equal(backwards.flip(1), h)


@pytest.mark.usefixtures("blocks_are_short")
@pytest.mark.parametrize("channels", [1, 20])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_stays_where_it_belongs(which: int, value: float, channels: int) -> None:
    length = 1000 // channels
    tensors = inputs(1, length, channels)[:2]
    tensors[0].abs_()
    tensors[which][0, length // 2, 0] = value
    got = linear_recurrence(*tensors)
    with force_backend("reference"):
        expected = linear_recurrence(*tensors)
    assert not expected.isfinite().all() and torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isinf(), expected.isinf())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(dtype: torch.dtype) -> None:
    a, b, initial = inputs(2, 9, 20)
    h, final = linear_recurrence(a, b.to(dtype), initial, return_state=True)
    exact, state = linear_recurrence(a, b.to(dtype).float(), initial, return_state=True)
    assert torch.equal(h, exact.to(dtype)) and torch.equal(final, state)
    leaf = b.to(dtype).requires_grad_()
    assert torch.autograd.grad(linear_recurrence(a.to(dtype), leaf).sum(), leaf)[0].dtype is dtype
    with torch.autocast("cpu", dtype):
        assert linear_recurrence(a.to(dtype), b).dtype is torch.float32


def results(tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = everything(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.usefixtures("blocks_are_short")
def test_the_bits_depend_neither_on_the_threads_nor_on_the_callers() -> None:
    shapes = (1, 3000, 1), (6, 90, 4), (1, 300, 20), (5, 30, 70), (1, 9, 1100)
    all_inputs, before = [inputs(*shape) for shape in shapes], torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append([results(tensors) for tensors in all_inputs])
        with ThreadPoolExecutor(4) as callers:
            runs.extend(callers.map(lambda _: [results(tensors) for tensors in all_inputs], range(8)))
    finally:
        torch.set_num_threads(before)
    assert len(runs) == 11
    for run in runs[1:]:
        for got, expected in zip(run, runs[0], strict=True):
            assert all(torch.equal(left, right) for left, right in zip(got, expected, strict=True))


@pytest.mark.parametrize("shape", [(2, 1000, 512), (1, 1_000_000, 1)])
def test_memory_is_the_outputs_and_little_else(shape: tuple[int, int, int]) -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(*shape)]
    with Allocations() as forward:
        h = linear_recurrence(*leaves)
    with Allocations() as backward:
        h.backward(torch.ones_like(h))
    assert h.numel() <= sum(forward.sizes) <= 1.1 * h.numel()
    assert 2 * h.numel() <= sum(backward.sizes) <= 2.1 * h.numel()


def test_only_the_gradients_asked_for_come_back() -> None:
    a, b, initial = inputs(1, 4, 6)
    linear_recurrence(a.requires_grad_(), b, initial).sum().backward()
    assert a.grad is not None and b.grad is None and initial.grad is None
    assert not linear_recurrence(*inputs(1, 4, 6)).requires_grad


def test_a_second_derivative_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 3, 2)]
    with pytest.raises(InputError, match=r"linear_recurrence.*second derivative.*force_backend"):
        torch.autograd.grad(linear_recurrence(*leaves).sum(), leaves, create_graph=True)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda t: t[:, :3], r"argument a has shape \(2, 3, 6\), expected one that broadcasts to .*\(2, 4, 6\)"),
        (0, lambda t: t[None], r"argument a has shape \(1, 2, 4, 6\), expected one that broadcasts"),
        (0, lambda t: t.double(), r"argument a is torch.float64, expected torch.float32.*a.to\(torch.float32\)"),
        (0, lambda t: t + 0j, r"argument a is torch.complex64, expected torch.float32"),
        (1, lambda t: t[0], r"argument b has shape \(4, 6\), expected \[batch, length, channels\]"),
        (1, lambda t: t.long(), "argument b is torch.int64, expected a floating-point or complex"),
        (2, lambda t: t[:, :5], r"argument initial has shape \(2, 5\), expected .*\(2, 6\)"),
        (2, lambda t: t.to("meta"), "argument initial is on meta, expected cpu"),
    ],
)
def test_wrong_input_is_named(which: int, change, message: str) -> None:
    tensors = inputs(2, 4, 6)
    tensors[which] = change(tensors[which])
    with pytest.raises(InputError, match="linear_recurrence: " + message):
        linear_recurrence(*tensors)
