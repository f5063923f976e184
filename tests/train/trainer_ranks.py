"""What test_trainer_ranks.py has done on every rank: RANK WORLD FOLDER."""

import json
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MambaConfig
from verim.runs import Ranks, RunDirectory
from verim.train import AdamWConfig, ByteLanguageModelling, Trainer, TrainerConfig, WarmupStableDecay
from verim.train.parallel import ParallelConfig, parallelize

STEPS, BATCH, LENGTH = 6, 4, 16
CONFIG = TrainerConfig(
    AdamWConfig(learning_rate=0.01), WarmupStableDecay(STEPS, 1, 2), clip=0.5, evaluations=2, checkpoint_seconds=0.0
)
PATTERN = (BlockConfig(AttentionConfig(heads=2), SwiGLUConfig(16)), BlockConfig(MambaConfig(state=4)))
TWO = {
    "data": ParallelConfig(data=2),
    "zero 1": ParallelConfig(shard=2, zero=1),
    "zero 3": ParallelConfig(shard=2),
    "tensor": ParallelConfig(tensor=2),
    "pipeline": ParallelConfig(pipeline=2, micro_batches=2),
    "context": ParallelConfig(context=2),
}
FOUR = {
    "shard and tensor": ParallelConfig(shard=2, tensor=2),
    "data and pipeline": ParallelConfig(data=2, pipeline=2, micro_batches=2),
}


class StoppedError(Exception):
    pass


def text(size: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(97, 105, (size,), dtype=torch.uint8)


def train(path: Path, config: ParallelConfig | None, stop: int | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(PATTERN, 8, 2))
    task = ByteLanguageModelling(text(4000), text(500), BATCH, LENGTH, seed=0, evaluation_bytes=330)
    parallel = parallelize(model, config, BATCH, LENGTH) if config is not None else None
    run = RunDirectory(path, ranks=Ranks.of_world() if config is not None else None)
    trainer = Trainer(model if parallel is None else parallel.module, task, CONFIG, run, parallel=parallel)

    def progress(record: dict[str, float]) -> None:
        if record["step"] == stop:
            raise StoppedError

    with run.writing():
        return trainer.train({"a": 1}, progress)


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    store = distributed.FileStore(str(folder / "store"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    came_out: dict[str, str | None] = {}
    for name, config in (TWO if world == 2 else FOUR).items():
        path = folder / name.replace(" ", "-")
        try:
            with suppress(StoppedError):
                train(path, config, stop=4)
            result = train(path, config)
            whole = train(folder / f"{path.name}-whole", config)
            assert result["bits_per_byte"] == whole["bits_per_byte"], "a resumed run has other bits"
            (folder / f"{path.name}.{rank}.json").write_text(json.dumps(result | {"config": asdict(config)}))
            if world == 2 and name in ("zero 3", "tensor"):  # stopped here, gone on with on one rank by the test
                with suppress(StoppedError):
                    train(folder / f"{path.name}-moved", config, stop=4)
            came_out[name] = None
        except Exception:
            came_out[name] = traceback.format_exc()
            break
    (folder / f"{rank}.json").write_text(json.dumps(came_out))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
