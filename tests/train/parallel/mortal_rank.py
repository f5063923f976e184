"""One rank of a training that dies once: see test_restart.py.

    torchrun --nproc-per-node 2 --max-restarts 1 mortal_rank.py FOLDER STEPS STEP

Trains STEPS steps over all ranks; rank 1 dies at step STEP of the first life. Every second step rank 0 writes a
checkpoint into FOLDER, and at the end the weights. Lines on standard output say what happened.
"""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from verim.errors import RankError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn.mixers import AttentionConfig
from verim.ops import cross_entropy
from verim.runtime.tensors import read_tensors, write_tensors
from verim.train.parallel import ParallelConfig, parallelize
from verim.train.parallel.start import started_ranks


class Next:
    """The next token of random sequences."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(16, (4, 9), generator=torch.Generator().manual_seed(step))
        return tokens[:, :-1], tokens[:, 1:]

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return cross_entropy(model(batch[0])[0], batch[1])

    def weight(self, batch: tuple[Tensor, ...]) -> float:
        return float(batch[1].numel())


def main() -> None:
    folder, steps, fatal = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with started_ranks(torch.device("cpu")):
        train(folder, steps, fatal)


def train(folder: Path, steps: int, fatal: int) -> None:
    rank, life = distributed.get_rank(), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig((BlockConfig(AttentionConfig(heads=2)),), 8, 1, 16))
    parallel = parallelize(model, ParallelConfig(data=distributed.get_world_size()), 4, 8)
    optimiser = torch.optim.SGD(parallel.module.parameters(), lr=0.1)  # no state: the checkpoint is the weights
    first = 0
    if (folder / "checkpoint").exists():
        weights, record = read_tensors(folder / "checkpoint")
        parallel.module.load_state_dict(weights)
        first = int(record)
    print(f"rank {rank}, life {life}: from step {first}", flush=True)
    for step in range(first, steps):
        if rank == 1 and life == 0 and step == fatal:
            os._exit(17)
        try:
            parallel.backward(Next(), parallel.share(Next().batch(step)))
            parallel.clip(1.0)
        except RankError as error:
            print(f"rank {rank}: {error}", flush=True)
            sys.exit(2)
        optimiser.step()
        optimiser.zero_grad()
        if rank == 0 and step % 2:
            write_tensors(folder / "checkpoint", parallel.module.state_dict(), str(step + 1))
    if rank == 0:
        write_tensors(folder / "final", parallel.module.state_dict())


if __name__ == "__main__":
    main()
