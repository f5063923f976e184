"""How Triton kernels are launched: on the tensor's device, over a grid of one axis."""

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Runs `kernel`, a `triton.jit` function, in `programs` programs on the device of `like`; none is allowed.

    `arguments` are its arguments in order, `constants` its `tl.constexpr` parameters. Programs are numbered along
    one axis, as the others of a grid end at 65 535. Multiply-adds are fused, whatever Triton's default is.
    """
    if programs > 0:
        with torch.cuda.device_of(like):
            kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


def multiprocessors(like: Tensor) -> int:
    """Of the device of `like`; in Triton's interpreter, where there are none, 1."""
    if like.device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(like.device).multi_processor_count
