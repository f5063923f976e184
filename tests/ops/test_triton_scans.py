"""The Triton kernels of the scans against the references: in Triton's interpreter, or on a CUDA device if there is one.

The interpreter takes some 0.1 ms an operation, so shapes are tiny there; the span of time after which a scan is cut
is as small (Triton's interpreter counts as one multiprocessor), so that all kernels run.
"""

import itertools
import math
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from agreement import assert_agrees, interpreted
from torch import Tensor
from triton_compilation import assert_compiles

pytest.importorskip("triton")

from verim.ops import linear_recurrence, selective_scan, wkv
from verim.ops.linear_recurrence import gpu as recurrence_gpu
from verim.ops.prefix_sum import gpu as prefix_sum_gpu
from verim.ops.prefix_sum.reference import prefix_sum_reference
from verim.ops.selective_scan import gpu as selective_scan_gpu
from verim.ops.wkv import gpu as wkv_gpu

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SHAPES = [(3, 1000, 300), (1, 4097, 65), (16, 77, 2048)] if CUDA else [(2, 3, 34), (1, 35, 3)]
NO_BATCH = (0, 3, 2)


def on_triton() -> AbstractContextManager[None]:
    return nullcontext() if CUDA else interpreted()


class Draw:
    """Random tensors on the device."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=dtype).to(DEVICE)


def scan_inputs(batch: int, length: int, channels: int, state: int) -> list[Tensor]:
    """u, delta, A, B, C, D, initial."""
    draw = Draw()
    delta = torch.nn.functional.softplus(draw(batch, length, channels) - 1)
    tensors = [draw(batch, length, channels), delta, -0.5 - draw(channels, state).abs()]
    return [*tensors, *draw(2, batch, length, state), draw(channels), draw(batch, channels, state)]


def wkv_inputs(batch: int, length: int, channels: int, scale: float = 1.0) -> list[Tensor]:
    """k, v, w, u, state."""
    draw = Draw()
    state = torch.stack([draw(batch, channels), draw(batch, channels).exp(), scale * draw(batch, channels)], 1)
    k, v = scale * draw(batch, length, channels), draw(batch, length, channels)
    return [k, v, (2 * draw(channels) - 1).exp(), draw(channels), state]


def recurrence_inputs(batch: int, length: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    """a, b, initial."""
    draw = Draw()
    a = draw(batch, length, channels, dtype=dtype)
    a = a / a.abs() * (0.3 + 0.7 * draw(batch, length, channels).sigmoid())
    return [a, draw(batch, length, channels, dtype=dtype), draw(batch, channels, dtype=dtype)]


def scan(*tensors: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in selective_scan(*tensors, return_state=True)])


def weighted_key_value(*tensors: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in wkv(*tensors, return_state=True)])


@pytest.mark.parametrize("shape", [*SHAPES, NO_BATCH])
@pytest.mark.parametrize("state", [16, 80] if CUDA else [5])
def test_selective_scan(shape: tuple[int, int, int], state: int) -> None:
    with on_triton():
        assert_agrees(scan, scan_inputs(*shape, state), 5e-6)


def test_selective_scan_without_the_optional_inputs_and_outputs() -> None:
    with on_triton():
        assert_agrees(lambda *t: selective_scan(*t), scan_inputs(1, 3, 2, 1)[:5], 5e-6)


@pytest.mark.parametrize(("shape", "scale"), [*zip(SHAPES, (1.0, 100.0, 1.0), strict=False), (NO_BATCH, 1.0)])
def test_wkv(shape: tuple[int, int, int], scale: float) -> None:
    with on_triton():
        assert_agrees(weighted_key_value, wkv_inputs(*shape, scale), 5e-6, terms=1.0)


def test_wkv_without_a_state() -> None:
    with on_triton():
        assert_agrees(lambda *t: wkv(*t), wkv_inputs(1, 3, 2)[:4], 5e-6, terms=1.0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, NO_BATCH])
def test_linear_recurrence(shape: tuple[int, int, int], reverse: bool) -> None:
    def op(*tensors: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in linear_recurrence(*tensors, reverse, return_state=True)])

    with on_triton():
        assert_agrees(op, recurrence_inputs(*shape, torch.float32))


@pytest.mark.parametrize("reverse", [False, True])
def test_linear_recurrence_of_complex_numbers(reverse: bool) -> None:
    def op(*parts: Tensor) -> Tensor:
        h = linear_recurrence(*(torch.view_as_complex(part) for part in parts), reverse, return_state=True)
        return torch.cat([torch.view_as_real(part).flatten() for part in h])

    shape = SHAPES[0] if CUDA else (1, 34, 1)
    tensors = recurrence_inputs(*shape, torch.complex64)
    with on_triton():
        assert_agrees(op, [torch.view_as_real(tensor) for tensor in tensors])


@pytest.mark.parametrize("shape", [(300, 70_001), (3, 7, 1 << 20), (1 << 24,)] if CUDA else [(3, 70), (4500,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
def test_prefix_sum_along_any_axis(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (10 * Draw()(*shape)).to(dtype)
    for dim, exclusive, reverse in itertools.product(range(max(1, len(shape))), (False, True), (False, True)):
        got = prefix_sum_gpu.prefix_sum_forward(x, dim, exclusive, reverse)
        expected = prefix_sum_reference(x.double() if x.is_floating_point() else x, dim, exclusive, reverse)
        tolerance = 2 * torch.finfo(dtype).eps if x.is_floating_point() else 0
        torch.testing.assert_close(
            got, expected.to(got.dtype), rtol=tolerance, atol=1e-3 * tolerance * len(x.flatten())
        )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_prefix_sum_of_nothing(shape: tuple[int, ...]) -> None:
    assert prefix_sum_gpu.prefix_sum_forward(Draw()(*shape), 1, False, False).shape == shape


def test_an_empty_sequence_hands_the_state_through() -> None:
    u, delta, A, B, C, D, state = scan_inputs(2, 0, 3, 5)
    _, final, kept = selective_scan_gpu.scan_forward(u, delta, A, B, C, D, state, True)
    *_, dA, _, _, dD, dstate = selective_scan_gpu.scan_backward(u, delta, A, B, C, D, kept, u, state)
    assert torch.equal(final, state) and torch.equal(dstate, state) and not dA.any() and not dD.any()
    k, v, w, u, state = wkv_inputs(2, 0, 3)
    _, final, kept = wkv_gpu.wkv_forward(k, v, w, u, state, True)
    *_, dw, du, dstate = wkv_gpu.wkv_backward(k, v, w, u, kept, k, state)
    assert torch.equal(final, state) and torch.equal(dstate, state) and not dw.any() and not du.any()
    a, b, state = recurrence_inputs(2, 0, 3, torch.float32)
    h, final = recurrence_gpu.recurrence_forward(a, b, state, True)
    *_, dstate = recurrence_gpu.recurrence_backward(a, h, state, h, state, True)
    assert torch.equal(final, state) and torch.equal(dstate, state)


def assert_rounded(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, exact, strict=True):
        half = 2.0**-8 if CUDA else 2.0**-7  # the interpreter cuts off where a device rounds
        tolerance = half if one.dtype is torch.bfloat16 else 1e-5
        assert (one.float() - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("op", ["selective_scan", "wkv", "linear_recurrence"])
def test_halves_are_read_as_they_are_and_rounded_once(op: str) -> None:
    shape = SHAPES[0]
    if op == "selective_scan":
        u, delta, A, B, C, D, initial = scan_inputs(*shape, 5)
        low = [t.bfloat16() for t in (u, delta)] + [A] + [t.bfloat16() for t in (B, C)] + [D, initial]
        forward, backward = selective_scan_gpu.scan_forward, selective_scan_gpu.scan_backward

        def run(t: list[Tensor]) -> tuple[Tensor, ...]:
            y, final, checkpoints = forward(*t, True)
            return y, final, *backward(*t[:6], checkpoints, torch.ones_like(y), final)

    elif op == "wkv":
        k, v, w, u, state = wkv_inputs(*shape)
        low = [k.bfloat16(), v.bfloat16(), w, u, state]

        def run(t: list[Tensor]) -> tuple[Tensor, ...]:
            y, final, checkpoints = wkv_gpu.wkv_forward(*t, True)
            return y, final, *wkv_gpu.wkv_backward(*t[:4], checkpoints, torch.ones_like(y), final)

    else:
        a, b, initial = recurrence_inputs(*shape, torch.float32)
        low = [a.bfloat16(), b.bfloat16(), initial]

        def run(t: list[Tensor]) -> tuple[Tensor, ...]:
            h, final = recurrence_gpu.recurrence_forward(*t, False)
            h_saved = h.bfloat16().to(h.dtype)  # as the halves' h is saved
            return h, final, *recurrence_gpu.recurrence_backward(t[0], h_saved, t[2], torch.ones_like(h), final, False)

    results = run(low)
    assert all(result.dtype is tensor.dtype for result, tensor in zip(results[2:], low, strict=False))
    assert_rounded(results, run([tensor.float() for tensor in low]))


def test_any_layout_of_the_inputs() -> None:
    batch, length, channels = SHAPES[0]
    tensors = scan_inputs(batch, length, channels, 5)
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t for t in tensors]
    with on_triton():
        assert torch.equal(scan(*turned), scan(*tensors))
        a, b, initial = recurrence_inputs(batch, length, channels, torch.float32)
        h = linear_recurrence(a[0, 0], b.transpose(0, 1).contiguous().transpose(0, 1), initial)  # a for all steps
        assert torch.equal(h, linear_recurrence(a[:1, :1].expand_as(b).contiguous(), b, initial))


@pytest.mark.parametrize("which", [0, 1])
def test_nan_in_gives_nan_out(which: int) -> None:
    for op, tensors in ((scan, scan_inputs(1, 4, 2, 2)), (weighted_key_value, wkv_inputs(1, 4, 2))):
        tensors[which][0, 1, 0] = math.nan
        with on_triton():
            got = op(*tensors)
        assert torch.equal(got.isnan(), op(*tensors).isnan()) and got.isnan().any()


def all_kernels() -> None:
    sequence, rows = (torch.empty(1, 256, width, dtype=torch.bfloat16) for width in (64, 16))
    one, A = torch.empty(64), torch.empty(64, 16)
    y, final, kept = selective_scan_gpu.scan_forward(sequence, sequence, A, rows, rows, one, A[None], True)
    selective_scan_gpu.scan_backward(sequence, sequence, A, rows, rows, one, kept, y, final)
    y, final, kept = wkv_gpu.wkv_forward(sequence, sequence, one, one, torch.empty(1, 3, 64), True)
    wkv_gpu.wkv_backward(sequence, sequence, one, one, kept, y, final)
    recurrence_gpu.recurrence_forward(sequence, sequence, one[None], False)
    sequence, state = (torch.empty(shape, dtype=torch.complex64) for shape in ((1, 256, 64), (1, 64)))
    recurrence_gpu.recurrence_backward(sequence, sequence, state, sequence, state, True)
    prefix_sum_gpu.prefix_sum_forward(torch.empty(2, 5000), 1, True, True)
    prefix_sum_gpu.prefix_sum_forward(torch.empty(5000, 3, dtype=torch.int32), 0, False, False)


def test_all_kernels_compile_for_a_device() -> None:
    kernels = {"_scan_summary", "_scan_forward", "_scan_backward_summary", "_scan_backward", "_wkv_summary"}
    kernels |= {"_wkv_forward", "_wkv_backward", "_recurrence_summary", "_recurrence_walk"}
    assert_compiles(all_kernels, kernels | {"_prefix_sum_of_spans", "_prefix_sum_scan"})
