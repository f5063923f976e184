"""`torch.compile` as an option: tried on the first batch, and left alone with a reason where it fails."""

from typing import Any, NamedTuple

import torch
from torch import nn

from verim.train.step import backward
from verim.train.task import Batch, WeighedLoss


class Compiled(NamedTuple):
    """What to call for the model; `reason` says why it is the model itself, None where it is compiled."""

    module: nn.Module
    reason: str | None = None


def compiled(model: nn.Module, task: WeighedLoss, batch: Batch, device: torch.device | None = None) -> Compiled:
    """`torch.compile(model)` where one forward and backward pass of it succeed, else `model` and the reason.

    The pass is on `batch`, so its shapes are those of training; gradients and random state are left as they were. The
    weights are shared: `model` is what is saved and evaluated.
    """
    module: Any = torch.compile(model)
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            backward(task, module, batch, device=device)
        except Exception as error:  # the compiler's own, the system compiler's, a graph that it cannot take
            torch.compiler.reset()
            return Compiled(model, f"torch.compile failed ({type(error).__name__}: {_first_line(error)})")
        finally:
            model.zero_grad(set_to_none=True)
    return Compiled(module)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
