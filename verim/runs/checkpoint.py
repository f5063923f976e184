"""A checkpoint: tensors and a JSON state in one safetensors file that carries its own SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from verim.errors import CorruptError
from verim.runtime.files import write_atomically


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

    The JSON part and the checksum are the file's safetensors metadata: any safetensors reader opens the file.
    Tensors that share memory (tied weights, views) are written each with a copy of its own.
    Raises `SpaceError` where the disk is full, `ValueError` where the state holds NaN or infinity.
    """
    tensors = _apart(checkpoint.tensors)
    record = json.dumps(
        {"step": checkpoint.step, "state": checkpoint.state, "metrics_bytes": checkpoint.metrics_bytes},
        allow_nan=False,
    )
    content = save(tensors, metadata={"verim": record, "sha256": _digest(record, tensors)})
    write_atomically(path, lambda temporary: _write_bytes(temporary, content))


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`. Raises `CorruptError` where the file is not whole or not what was written."""
    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        record, expected = header["__metadata__"]["verim"], header["__metadata__"]["sha256"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptError(f"{path} is not a checkpoint of Verim or is cut short ({error})") from error
    found = _digest(record, tensors)
    if found != expected:
        raise CorruptError(f"{path} is damaged: its content has SHA-256 {found[:12]}…, expected {expected[:12]}…")
    fields = json.loads(record)
    return Checkpoint(fields["step"], tensors, fields["state"], fields["metrics_bytes"])


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, no two in one storage (safetensors refuses those)."""
    result, storages = {}, set()
    for name, tensor in tensors.items():
        here = tensor.detach().to("cpu").contiguous()
        if here.untyped_storage().data_ptr() in storages:
            here = here.clone()
        storages.add(here.untyped_storage().data_ptr())
        result[name] = here
    return result


def _digest(record: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
