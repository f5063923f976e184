"""Which version of an op runs. The backend follows the device and the data type of the input.

`VERIM_BACKEND=reference` in the environment, or `with force_backend("reference"):`, makes every op run its
definition in plain PyTorch. `auto` (the default) takes the fast version where there is one; where there is
none, the reference runs and a warning says so, once for each op, device and data type.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from verim.errors import InputError

_BACKENDS = ("auto", "reference")
_forced: ContextVar[str | None] = ContextVar("verim_backend", default=None)
_warned: set[tuple[str, str, torch.dtype]] = set()


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Inside the block every op runs on `name` ("auto" or "reference"), whatever the environment says.

    The backward pass follows the backend its forward pass ran on. Raises `InputError` for another name.
    """
    token = _forced.set(_checked(name, "name of force_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def takes_fast_path(op: str, like: Tensor) -> bool:
    """Whether `op`, called with tensors of the device and data type of `like`, runs its fast version.

    The fast versions are for float32 on the CPU. Warns (once) where only the lack of a fast version decides.
    """
    forced = _forced.get()
    if forced is None:
        named = os.environ.get("VERIM_BACKEND")
        forced = "auto" if not named else _checked(named, "environment variable VERIM_BACKEND")
    if forced == "reference":
        return False
    if like.dtype is torch.float32 and like.device.type == "cpu":
        return True
    key = (op, like.device.type, like.dtype)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(
            f"{op} has no fast version for {like.dtype} on {like.device.type}: the plain PyTorch "
            "reference runs, slowly. Use float32 on the CPU, or choose the reference with "
            'verim.ops.force_backend("reference"), which does not warn',
            stacklevel=3,
        )
    return False


def _checked(name: str, where: str) -> str:
    if name not in _BACKENDS:
        raise InputError(f"{where} is {name!r}, expected one of {', '.join(_BACKENDS)}")
    return name
