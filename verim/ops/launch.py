"""How Triton kernels are launched: on the tensor's device, over a grid of one axis."""

from typing import Any

import torch
from torch import Tensor

STEPS_KEPT = 32  # of time between the states that the scans keep for their backward pass
WARPS = 12  # on a multiprocessor: enough of them that one computes while others wait for memory


def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Runs `kernel`, a `triton.jit` function, in `programs` programs on the device of `like`; none is allowed.

    `arguments` are its arguments in order, `constants` its `tl.constexpr` parameters. Programs are numbered along
    one axis, as the others of a grid end at 65 535. Multiply-adds are fused, whatever Triton's default is.
    """
    if programs > 0:
        with torch.cuda.device_of(like):
            kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


def multiprocessors(like: Tensor) -> int:
    """Of the device of `like`. Triton's interpreter counts as one."""
    if like.device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(like.device).multi_processor_count


def spans_of_time(length: int, warps: int, like: Tensor, wanted: int = WARPS) -> tuple[int, int]:
    """Into how many spans of time a scan is cut that has `warps` warps without, and the steps of one.

    More spans mean more work: there is one unless less than half of the warps `wanted` on each multiprocessor would
    run. Spans begin at multiples of `STEPS_KEPT`.
    """
    count = max(1, wanted * multiprocessors(like) // max(warps, 1))
    kept = max(1, -(-length // STEPS_KEPT))
    steps = -(-kept // min(count, kept)) * STEPS_KEPT
    return max(1, -(-length // steps)), steps
