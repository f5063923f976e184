"""The process group of a training that torchrun has started, or none."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import DistStoreError, PrefixStore, Store  # type: ignore[attr-defined]  # documented there
from torch.distributed.rendezvous import rendezvous

from verim.runs import Ranks

_TIMEOUT = timedelta(minutes=10)
"""After so long without an answer another rank counts as lost."""
_ANSWER = timedelta(seconds=0.2)
"""How long a rank waits for rank 0's answer before it looks for a newer life."""


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
    store, rank, world = next(rendezvous("env://", timeout=_TIMEOUT))
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(
        backend, store=store_of_this_life(store, rank, world), rank=rank, world_size=world, timeout=_TIMEOUT
    )
    try:
        yield Ranks.of_world(_TIMEOUT.total_seconds())
    finally:
        distributed.destroy_process_group()


def store_of_this_life(store: Store, rank: int, world: int) -> Store:
    """A part of `store` that only ranks which live now know of.

    torchrun keeps one store through all restarts, with the addresses of ranks that have died: who reads them connects
    to nobody. (The number of restarts tells lives apart on one machine; on several, only the machine whose rank died
    counts it.) So rank 0 names this life and answers each rank that calls it by that name; who gets no answer has read
    the name of a life that has ended, and reads again.
    """
    if rank == 0:
        life = uuid.uuid4().hex
        store.set("life", life)
        for other in range(1, world):
            caller = store.get(f"{life}/{other}").decode()
            store.set(f"{life}/{other}/{caller}", "")
        return PrefixStore(life, store)
    caller = uuid.uuid4().hex
    last = time.monotonic() + _TIMEOUT.total_seconds()
    while True:
        life = store.get("life").decode()
        store.set(f"{life}/{rank}", caller)
        try:
            store.wait([f"{life}/{rank}/{caller}"], _ANSWER)
            return PrefixStore(life, store)
        except DistStoreError:
            if time.monotonic() > last:
                raise


def is_restarted() -> bool:
    """Whether torchrun has started these ranks again after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
