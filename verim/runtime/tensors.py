"""Tensors and a line of text in one safetensors file that carries its own SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from verim.errors import CorruptError
from verim.runtime.files import write_bytes


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: str = "") -> str:
    """Writes `tensors` and `record` to `path`, whole or not at all; returns the SHA-256 of both, in hexadecimal.

    The record and the checksum are the file's safetensors metadata: any safetensors reader opens the file.
    Tensors that share memory (tied weights, views) are written each with a copy of its own.
    Raises `SpaceError` where the disk is full.
    """
    apart = _apart(tensors)
    digest = _digest(record, apart)
    write_bytes(path, save(apart, metadata={"verim": record, "sha256": digest}))
    return digest


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the record in `path`.

    Raises `CorruptError` where the file is not whole or not what was written; the caller adds what to do.
    """
    content = path.read_bytes()
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        record, expected = metadata["verim"], metadata["sha256"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptError(f"{path} was not written by Verim or is cut short ({error})") from error
    found = _digest(record, tensors)
    if found != expected:
        raise CorruptError(f"{path} is damaged: its content has SHA-256 {found[:12]}…, expected {expected[:12]}…")
    return tensors, record


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
