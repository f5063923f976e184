"""The process group of a training that torchrun has started, or none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from verim.runs import Ranks

_TIMEOUT = timedelta(minutes=10)
"""After so long without an answer another rank counts as lost."""


@contextmanager
def started_ranks(device: torch.device) -> Iterator[Ranks]:
    """All ranks of this training, while the block lasts: those that torchrun says, by its environment; else this one.

    Ranks on CUDA take the GPU of their number on the machine and talk over NCCL, others over Gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Ranks.of_world(_TIMEOUT.total_seconds())
    finally:
        distributed.destroy_process_group()


def is_restarted() -> bool:
    """Whether torchrun has started these ranks again after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
