"""Linear recurrences by other means, for the ops that are made of one: decay and drive in, all states out."""

import shutil
from collections.abc import Callable

import torch
from torch import Tensor

Scan = Callable[[Tensor, Tensor], Tensor]
_COMPILED_FROM = 2**23  # entries: a shape takes a minute to compile, so only the largest are


def mambapy_scan() -> Scan:
    """mambapy's parallel scan over [batch, length, channels, state]."""
    from mambapy.pscan import pscan

    return pscan


def compiled_scan() -> Scan:
    """torch's associative scan over the second axis, by way of `torch.compile`, which needs a C++ compiler here."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ImportError("no C++ compiler was found")
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    def scan(decay: Tensor, drive: Tensor) -> Tensor:
        states: Tensor = associative_scan(combine, (decay, drive), 1, combine_mode="generic")[1]
        return states

    return torch.compile(scan, dynamic=False)


def worth_compiling(entries: int) -> bool:
    """Whether a case is so large that its compilation pays."""
    return entries >= _COMPILED_FROM
