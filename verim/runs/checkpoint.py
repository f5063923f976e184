"""A checkpoint: tensors and a JSON state in one safetensors file that carries its own SHA-256."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from verim.errors import CorruptError
from verim.runtime.tensors import read_tensors, write_tensors


@dataclass(frozen=True)
class Checkpoint:
    """What a run held after `step` steps, when its metrics had `metrics_bytes`.

    `tensors` lie on the CPU. `warning` says what was passed over to get here (a newer checkpoint that is
    damaged); None where nothing was."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    metrics_bytes: int
    warning: str | None = None


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `checkpoint` to `path`, whole or not at all.

    Tensors that share memory (tied weights, views) are written each with a copy of its own.
    Raises `SpaceError` where the disk is full, `ValueError` where the state holds NaN or infinity.
    """
    record = json.dumps(
        {"step": checkpoint.step, "state": checkpoint.state, "metrics_bytes": checkpoint.metrics_bytes},
        allow_nan=False,
    )
    write_tensors(path, checkpoint.tensors, record)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`. Raises `CorruptError` where the file is not whole or not what was written."""
    tensors, record = read_tensors(path)
    try:
        fields = json.loads(record)
        return Checkpoint(fields["step"], tensors, fields["state"], fields["metrics_bytes"])
    except (ValueError, KeyError) as error:
        raise CorruptError(f"{path} is not a checkpoint of Verim ({error})") from error
