"""Data types of an op's tensors: halves are computed in float32 and rounded once, autocast is followed."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def _kind(tensor: object) -> str:
    """The kind of a tensor's device. What is no tensor is refused later, by the op's checks."""
    return (
        "cpu" if not isinstance(tensor, Tensor) or tensor.is_cpu else tensor.device.type
    )  # a name takes a microsecond


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Inside the block operations on the device of `like` keep the types of their tensors."""
    kind = _kind(like)
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def widen(*tensors: Tensor | None) -> tuple[Any, ...]:
    """bfloat16 and float16 as float32; gradients come back in the type that was given."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype in HALVES:
            break
    else:  # as nearly always: small models spend half their time on what surrounds the kernels
        return tensors
    return tuple(tensor.float() if tensor is not None and tensor.dtype in HALVES else tensor for tensor in tensors)


def narrow(result: Tensor, like: Tensor) -> Tensor:
    """`result` in the data type of `like`."""
    return result if result.dtype is like.dtype else result.to(like.dtype)


def follow_autocast(*tensors: Tensor | None, lower: bool = False) -> tuple[Any, ...]:
    """What an op does under `torch.autocast` for the first tensor's device; elsewhere the tensors as they are.

    Floating-point tensors become float32, as in torch's own cumsum, exp and losses, or with `lower` autocast's type,
    as in torch's matrix products and attention. float64 stays.
    """
    kind = _kind(tensors[0])
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    target = torch.get_autocast_dtype(kind) if lower else torch.float32
    kinds = (torch.float32, *HALVES)
    return tuple(
        tensor.to(target) if isinstance(tensor, Tensor) and tensor.dtype in kinds else tensor for tensor in tensors
    )
