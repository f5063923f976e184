"""The Triton kernels of wkv7 against the reference: in Triton's interpreter, or on a CUDA device if there is one."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from agreement import assert_agrees, interpreted
from torch import Tensor
from torch.nn.functional import normalize
from triton_compilation import assert_compiles

pytest.importorskip("triton")

from verim.ops import wkv7
from verim.ops.wkv7 import gpu

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SHAPES = [(3, 1000, 5, 64), (2, 77, 3, 40), (1, 300, 2, 128)] if CUDA else [(1, 18, 1, 5), (2, 3, 2, 35)]


def on_triton() -> AbstractContextManager[None]:
    return nullcontext() if CUDA else interpreted()


def inputs(batch: int, length: int, heads: int, size: int) -> list[Tensor]:
    """r, w, k, v, a, b, state."""
    draw = torch.Generator().manual_seed(0)
    r, w, k, v, removed, rate = torch.randn(6, batch, length, heads, size, generator=draw).to(DEVICE).unbind()
    removed, w = normalize(removed, dim=-1), torch.exp(-0.6065 * w.sigmoid())
    state = torch.randn(batch, heads, size, size, generator=draw).to(DEVICE)
    return [r, w, k, v, -removed, removed * rate.sigmoid(), state]


def output_and_state(*tensors: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in wkv7(*tensors, return_state=True)])


@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 2, 4)])
def test_agrees_with_the_reference(shape: tuple[int, int, int, int]) -> None:
    with on_triton():
        assert_agrees(output_and_state, inputs(*shape), 5e-6)


def test_without_the_optional_input_and_output() -> None:
    with on_triton():
        assert_agrees(wkv7, inputs(1, 3, 1, 2)[:6], 5e-6)


def test_an_empty_sequence_hands_the_state_through() -> None:
    *tensors, state = inputs(2, 0, 2, 3)
    y, final, found, kept = gpu.wkv7_forward(*tensors, state, True)
    *_, dstate = gpu.wkv7_backward(*tensors, found, kept, y, state)
    assert torch.equal(final, state) and torch.equal(dstate, state)


def test_halves_are_read_as_they_are_and_rounded_once() -> None:
    tensors = [t if i in (1, 6) else t.bfloat16() for i, t in enumerate(inputs(*SHAPES[-1]))]  # w and the state stay

    def run(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        y, final, found, kept = gpu.wkv7_forward(*tensors, True)
        return y, final, *gpu.wkv7_backward(*tensors[:6], found, kept, torch.ones_like(y), final)

    got, exact = run(tensors), run([tensor.float() for tensor in tensors])
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert one.dtype is (torch.float32 if index in (1, 3, 8) else torch.bfloat16)
        half = 2.0**-8 if CUDA else 2.0**-7  # the interpreter cuts off where a device rounds
        tolerance = half if one.dtype is torch.bfloat16 else 1e-5
        assert (one.float() - other).norm() <= tolerance * other.norm()


def all_kernels() -> None:
    x, w = torch.empty(1, 64, 2, 64, dtype=torch.bfloat16), torch.empty(1, 64, 2, 64)
    y, final, found, kept = gpu.wkv7_forward(x, w, x, x, x, x, torch.empty(1, 2, 64, 64), True)
    gpu.wkv7_backward(x, w, x, x, x, x, found, kept, y, final)
    gpu.wkv7_forward(x, w, x, x, x, x, None, False)


def test_all_kernels_compile_for_a_device() -> None:
    assert_compiles(all_kernels, {"_wkv7_forward", "_wkv7_backward"})
