"""The running sum along an axis: the scan of addition."""

from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from verim.errors import InputError
from verim.ops.backend import takes_fast_path
from verim.ops.kernel import Kernel
from verim.ops.precision import HALVES, follow_autocast, widen
from verim.ops.prefix_sum import cpu
from verim.ops.prefix_sum.cost import forward_cost
from verim.ops.prefix_sum.reference import prefix_sum_reference

_NAME = "prefix_sum"
_SMALL = 1 << 18  # elements: below, torch is as fast as we are
_TYPES = {"cpu": (*cpu.TYPES, *HALVES), "cuda": (torch.float32, torch.float64, *HALVES, torch.int32, torch.int64)}


def prefix_sum(
    x: Num[Tensor, "..."], dim: int = -1, exclusive: bool = False, reverse: bool = False
) -> Num[Tensor, "..."]:
    """The sum of all entries up to and including each one, along `dim`.

        y_i = x_0 + x_1 + ... + x_i                  y_i = x_0 + ... + x_{i-1}   with `exclusive`
        y_i = x_i + x_{i+1} + ... + x_{n-1}          with `reverse`; both together begin at x_{i+1}

    As `torch.cumsum`, with its data types: floats keep theirs, bool and integers give int64 (modulo 2**64). Sums of
    floats are kept in float64 and rounded once, halves in float32 or better. Blelloch, "Prefix sums and their
    applications" (CMU-CS-90-190), calls the two kinds scan (inclusive) and prescan (exclusive).

    - `x`: any shape, any layout, any device; the result is contiguous.
    - `dim`: the axis, counted from the end if negative.

    Differentiable any number of times: the gradient is the scan from the other end. The fast version runs on the CPU
    for floats, integers and bool from 262 144 entries up, and on CUDA devices; everything else (complex
    numbers, small tensors) is handed on to torch. The same input gives the same bits, whatever the number of threads.

    Raises `InputError` (a ValueError) for an axis that is not there, and for what is not a tensor.

    >>> prefix_sum(torch.tensor([1, 2, 4])), prefix_sum(torch.tensor([1, 2, 4]), exclusive=True, reverse=True)
    (tensor([1, 3, 7]), tensor([6, 4, 0]))
    """
    try:  # a small tensor first: torch needs 2 µs for it, so nothing may stand before
        if x.numel() < _SMALL and not (exclusive or reverse):
            return x.cumsum(dim)
    except (AttributeError, TypeError, IndexError):
        pass  # and is checked below
    _check(x, dim)
    (x,) = follow_autocast(x)
    if x.numel() < _SMALL or x.is_complex():
        return prefix_sum_reference(x, dim, exclusive, reverse)
    if not x.is_floating_point() and x.dtype not in _TYPES.get(x.device.type, ()):
        x = x.long()
    if not takes_fast_path(_NAME, x, _TYPES):
        return prefix_sum_reference(x, dim, exclusive, reverse)
    wide = widen(x)[0] if x.device.type == "cpu" else x
    return _scan(wide, dim % x.dim(), exclusive, reverse).to(x.dtype if x.is_floating_point() else torch.int64)


def _scan(x: Tensor, dim: int, exclusive: bool, reverse: bool) -> Any:
    if torch.is_grad_enabled() and x.requires_grad:
        return _PrefixSum.apply(x, dim, exclusive, reverse)
    return prefix_sum_forward(x, dim, exclusive, reverse)


class _PrefixSum(torch.autograd.Function):
    """The fast version with its gradient, which is itself differentiable. Saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, exclusive: bool, reverse: bool) -> Any:
        ctx.how = dim, exclusive, not reverse
        return prefix_sum_forward(x, dim, exclusive, reverse)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():  # which sees the derivatives of the gradient by itself
            return prefix_sum_forward(dy, *ctx.how), None, None, None
        return _scan(dy, *ctx.how), None, None, None


def _check(x: Tensor, dim: int) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"{_NAME}: argument x is {type(x).__name__}, expected a tensor")
    axes = max(x.dim(), 1)  # a number is its own sum
    if not isinstance(dim, int) or not -axes <= dim < axes:
        raise InputError(
            f"{_NAME}: argument dim is {dim!r}, expected an axis of x, whose shape is {tuple(x.shape)}: "
            f"an integer from {-axes} to {axes - 1}"
        )


def _fake_forward(x: Tensor, dim: int, exclusive: bool, reverse: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=x.dtype if x.is_floating_point() else torch.int64)


def _result_bytes(x: Tensor) -> int:
    return x.element_size() if x.is_floating_point() else 8


prefix_sum_forward = Kernel(
    cpu.prefix_sum_forward,
    "(Tensor x, int dim, bool exclusive, bool reverse) -> Tensor",
    _fake_forward,
    lambda x, *how: forward_cost(x.numel(), x.element_size(), _result_bytes(x)),
)
