"""Checks of an op's tensors, with errors that name the argument, what was got and what was expected."""

import torch
from torch import Tensor

from verim.errors import InputError
from verim.ops.precision import HALVES


def check_tensor(
    op: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    meaning: str,
    like: Tensor,
    or_float32: bool = False,
) -> None:
    """Raises `InputError` unless `tensor` has `shape` (`meaning` in words), and type and device of `like`.

    With `or_float32` it may be float32 beside a bfloat16 or float16 `like`: parameters and states are kept so.
    """
    check_is_tensor(op, name, tensor)
    if tensor.shape != shape:
        raise InputError(f"{op}: argument {name} has shape {tuple(tensor.shape)}, expected {meaning} = {tuple(shape)}")
    mixed = or_float32 and like.dtype in HALVES and tensor.dtype is torch.float32
    if tensor.dtype is not like.dtype and not mixed:
        raise InputError(
            f"{op}: argument {name} is {tensor.dtype}, expected {like.dtype} like the first argument: "
            f"convert it with {name}.to(torch.{str(like.dtype).removeprefix('torch.')})"
        )
    if not (tensor.is_cpu and like.is_cpu) and tensor.device != like.device:  # devices take a while to compare
        raise InputError(
            f"{op}: argument {name} is on {tensor.device}, expected {like.device} like the first argument: "
            f"move it with {name}.to('{like.device}')"
        )


def check_sequence(op: str, name: str, tensor: Tensor) -> None:
    """Raises `InputError` unless `tensor` is a real floating-point tensor [batch, length, channels]."""
    check_is_tensor(op, name, tensor)
    if tensor.dim() != 3:
        raise InputError(f"{op}: argument {name} has shape {tuple(tensor.shape)}, expected [batch, length, channels]")
    if not tensor.is_floating_point():
        raise InputError(f"{op}: argument {name} is {tensor.dtype}, expected a floating-point data type")


def check_is_tensor(op: str, name: str, value: object) -> None:
    """Raises `InputError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise InputError(f"{op}: argument {name} is a {type(value).__name__}, expected a tensor")
