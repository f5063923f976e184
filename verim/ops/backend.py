"""Which version of an op runs. The backend follows the device and the data type of the input.

`VERIM_BACKEND=reference` in the environment, or `with force_backend("reference"):`, makes every op run its
definition in plain PyTorch. `auto` (the default) takes the fast version where there is one; where there is
none, the reference runs and a warning says so, once for each op, device and data type.
"""

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from verim.errors import InputError
from verim.ops.precision import HALVES

SINGLE_ON_CPU = {"cpu": (torch.float32,)}
FLOATS = {"cpu": (torch.float32, *HALVES), "cuda": (torch.float32, *HALVES)}  # halves are computed in float32
FLOATS_ON_CPU: dict[str, tuple[torch.dtype, ...]] = {"cpu": (torch.float32, *HALVES), "cuda": ()}

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


def takes_fast_path(op: str, like: Tensor, types: Mapping[str, tuple[torch.dtype, ...]] = SINGLE_ON_CPU) -> bool:
    """Whether `op`, called with tensors of the device and data type of `like`, runs its fast version.

    `types`: the data types of the fast version by kind of device ("cpu", "cuda"). Warns (once) where only the lack
    of a fast version decides, but not where a device is listed without any type: there the reference is as good as
    it gets, elementwise work that `torch.compile` fuses. Inside `torch.compile` the choice is made once, when the
    code is compiled. Under transformations that the kernels do not know (`torch.func`, forward-mode derivatives,
    `torch.jit.trace`) the reference runs.
    """
    if _is_reference_forced():
        return False
    if not torch.compiler.is_compiling() and _is_transformed():
        _warn_of_transform(op)
        return False
    device = "cpu" if like.is_cpu else like.device.type  # a device's name takes a microsecond
    known = types.get(device)
    if known and like.dtype in known and (device != "cuda" or _has_triton()):
        return True
    if known != () and device != "meta" and not torch.compiler.is_compiling():
        _warn_once(op, device, like.dtype, types)
    return False


@torch.compiler.assume_constant_result
def _is_reference_forced() -> bool:
    forced = _forced.get()
    return (_named() if forced is None else forced) == "reference"


@functools.cache
def _named() -> str:
    """The environment's choice, read once: to look costs two microseconds, and every op asks."""
    named = os.environ.get("VERIM_BACKEND")
    return _checked(named, "environment variable VERIM_BACKEND") if named else "auto"


@torch.compiler.assume_constant_result
@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _is_transformed() -> bool:
    return (
        forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


@functools.cache
def _warn_of_transform(op: str) -> None:
    warnings.warn(
        f"{op}: under torch.func, forward-mode derivatives and torch.jit.trace the plain PyTorch reference runs, "
        'slowly. To choose it without this warning: verim.ops.force_backend("reference")',
        stacklevel=4,
    )


def _warn_once(op: str, device: str, dtype: torch.dtype, types: Mapping[str, tuple[torch.dtype, ...]]) -> None:
    if (op, device, dtype) in _warned:
        return
    _warned.add((op, device, dtype))
    known = ", ".join(f"{name} on {kind}" for kind, names in types.items() for name in names)
    if device == "cuda" and dtype in types.get(device, ()):
        known += "; on cuda it needs the package triton, which is not installed"
    warnings.warn(
        f"{op} has no fast version for {dtype} on {device}: the plain PyTorch reference runs, slowly. "
        f"There are fast versions for {known}. To choose the reference without this warning: "
        'verim.ops.force_backend("reference")',
        stacklevel=4,
    )


def _checked(name: str, where: str) -> str:
    if name not in _BACKENDS:
        raise InputError(f"{where} is {name!r}, expected one of {', '.join(_BACKENDS)}")
    return name
