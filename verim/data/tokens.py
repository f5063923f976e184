"""A corpus's tokens on disk, so that a study goes on without its source files and its workers share one reading."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from verim.errors import CorruptError
from verim.runtime.tensors import read_tensors, write_tensors

_EXPECTED = {"train": (torch.uint8, 1), "held_out": (torch.uint8, 1)}


def save_tokens(path: Path, train: UInt8[Tensor, " train_bytes"], held_out: UInt8[Tensor, " held_out_bytes"]) -> str:
    """Writes both parts to the safetensors file `path`, whole or not at all; returns the SHA-256 kept in it.

    Raises `SpaceError` where the disk is full.
    """
    return write_tensors(path, {"train": train, "held_out": held_out})


def load_tokens(path: Path) -> dict[str, Tensor]:
    """The parts `train` and `held_out` that `save_tokens` wrote, checked against their SHA-256 (under 0.1 s for 12 MB).

    Raises `CorruptError` where the file is not whole or not what was written, `FileNotFoundError` without one.
    """
    try:
        tensors = read_tensors(path)[0]
        if {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()} != _EXPECTED:
            listed = ", ".join(f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise CorruptError(f"{path} holds {listed or 'nothing'}, expected the tokens of a corpus")
    except CorruptError as error:
        raise CorruptError(f"{error}: restore it, or run the study anew in another directory") from error
    return tensors
