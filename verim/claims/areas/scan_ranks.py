"""Scan: the same over the ranks of a process group."""

import multiprocessing
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from verim import ops
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtMost
from verim.errors import RankError
from verim.runtime.files import read_json, write_json
from verim.runtime.processes import follow_parent


def _sequence(length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, length, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return 0.99 + a / 100, b  # what one rank carries reaches far into the next


def _rank(rank: int, ranks: int, length: int, folder: str) -> None:
    """One process: its piece of the sequence, and how far its result is from that of the local op."""
    follow_parent()
    torch.set_num_threads(1)
    meeting = Path(folder, "store").as_uri()
    distributed.init_process_group("gloo", meeting, timedelta(minutes=2), world_size=ranks, rank=rank)
    try:
        a, b = _sequence(length)
        piece = slice(rank * length // ranks, (rank + 1) * length // ranks)
        ours = ops.distributed_linear_recurrence(a[:, piece].contiguous(), b[:, piece].contiguous())
        local = ops.linear_recurrence(a, b)[:, piece]
        write_json(Path(folder, f"{rank}.json"), float((ours - local).norm() / local.norm()))
    finally:
        distributed.destroy_process_group()


@claim(
    id="scan-distributed",
    area="scan",
    text="A scan over ranks gives what the scan of the whole sequence in one place gives",
    source="Blelloch 1990, section 1.3 (blocks of processors)",
    expected=AtMost(1e-12),
    cost=12,
    kind="measured",
)
def distributed_is_local(ranks: int = 2, length: int = 1001) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_rank, args=(rank, ranks, length, folder)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RankError("a process of the group failed: what it printed says why")
        errors = {f"rank {rank}": read_json(Path(folder, f"{rank}.json")) for rank in range(ranks)}
    return Measurement(
        errors, f"relative difference of a linear recurrence, float64, {length} places on {ranks} processes (gloo)"
    )
