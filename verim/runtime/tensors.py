"""Tensors and a line of text in one safetensors file that carries its own SHA-256."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from operator import itemgetter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from verim.errors import CorruptError
from verim.runtime.files import write_atomically


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], record: str = "", metadata: Mapping[str, str] | None = None
) -> str:
    """Writes `tensors` and `record` to `path`, whole or not at all; returns the SHA-256 of both, in hexadecimal.

    The record and the checksum are the file's safetensors metadata, beside what other readers look for there
    (`metadata`): any safetensors reader opens the file. Tensors on the CPU are written from where they lie, without
    a copy and without Python's lock, so that other threads go on meanwhile; those that share memory (tied weights,
    views) are written each with a copy of its own. Raises `SpaceError` where the disk is full.
    """
    apart = _apart(tensors)
    described = {**(metadata or {}), "verim": record}
    digest = _digest(described, apart.items())

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors writes a file of its own (.tmp…) that only its owner may read
        try:
            save_file(apart, temporary, metadata={**described, "sha256": digest})
        except SafetensorError as error:
            raise _system_error(error) from error
        temporary.chmod(mode)

    write_atomically(path, write)
    return digest


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the record in `path`.

    Raises `CorruptError` where the file is not whole or not what was written; the caller adds what to do.
    """
    content = path.read_bytes()
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        record, expected = metadata["verim"], metadata.pop("sha256")
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptError(f"{path} was not written by Verim or is cut short ({error})") from error
    found = _digest(metadata, tensors.items())
    if found != expected:
        raise CorruptError(f"{path} is damaged: its content has SHA-256 {found[:12]}…, expected {expected[:12]}…")
    return tensors, record


def read_record(path: Path) -> str:
    """The record in `path`, read from the head of the file alone: the tensors are not looked at.

    Raises `CorruptError` where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(file.metadata()["verim"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} was not written by Verim or is cut short ({error})") from error


def tensors_digest(path: Path) -> str:
    """The SHA-256 of what `path` holds, as `write_tensors` returned it; the tensors are mapped, not loaded.

    Raises `CorruptError` where the file is cut short or its content is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            expected = metadata.pop("sha256")
            names = file.keys()
            found = _digest(metadata, ((name, file.get_tensor(name)) for name in names))
    except (SafetensorError, KeyError) as error:
        raise CorruptError(f"{path} was not written by Verim or is cut short ({error})") from error
    if found != expected:
        raise CorruptError(f"{path} is damaged: its content has SHA-256 {found[:12]}…, expected {expected[:12]}…")
    return found


def _system_error(error: SafetensorError) -> Exception:
    """What the operating system said, which safetensors tells in words only."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


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


def _digest(metadata: Mapping[str, str], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of all that a file says: its record, what other readers look for, and each tensor."""
    others = [f"\n{key} {text}" for key, text in sorted(metadata.items()) if key != "verim"]
    digest = hashlib.sha256("".join((metadata["verim"], *others)).encode())
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
