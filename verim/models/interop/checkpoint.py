"""Folders of a config.json and safetensors files, in one file or in several with an index."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from verim.errors import CorruptError, InputError
from verim.runtime.files import read_json, write_atomically, write_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Source(ABC):
    """The tensors of a checkpoint by name, read one at a time."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor `name`, which may be a view of a file: copy it."""


class FolderSource(Source):
    """The safetensors files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path, names in _files(folder).items():
            file = _open(path)
            held = set(file.keys())
            for name in held if names is None else names:
                if name not in held:
                    raise CorruptError(f"{path} lacks the tensor {name} that {INDEX} says it holds: fetch both again")
                self._files[name] = file
                shapes[name] = tuple(file.get_slice(name).get_shape())
        super().__init__(shapes)

    def read(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json in `folder`. Raises `InputError` where there is none, `CorruptError` where it is no object."""
    if not folder.is_dir():
        raise InputError(f"path: got {folder}, expected a folder that holds {CONFIG} and {WEIGHTS}")
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"path: {folder} holds no {CONFIG}; expected the folder of a checkpoint")
    config = read_json(path)
    if not isinstance(config, dict):
        raise CorruptError(f"{path} holds a {type(config).__name__}, expected an object: fetch it again")
    return config


def write_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], texts: dict[str, Any], shard_bytes: int
) -> None:
    """Writes a new folder, whole or not at all: config.json, the tensors, the JSON files `texts`.

    Files of tensors have at most `shard_bytes` bytes of them, or one tensor. Raises `InputError` where `folder` holds
    something already, `SpaceError` where the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"path: {folder} exists already and is not an empty folder: name a new one, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        shards = _shards(tensors, shard_bytes)
        places: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            places |= dict.fromkeys(names, file)
            shard = {name: _alone(tensors[name]) for name in names}
            write_atomically(temporary / file, partial(save_file, shard, metadata={"format": "pt"}))
        if len(shards) > 1:
            size = sum(tensor.nbytes for tensor in tensors.values())
            write_json(temporary / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
        for name, value in ({CONFIG: config} | texts).items():
            write_json(temporary / name, value)
        if folder.exists():  # empty; Windows renames over no folder at all
            folder.rmdir()
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a folder with the names of their tensors, None for all that a file holds."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise InputError(
                f"path: the weights in {folder} are pickled ({pickles[0]}), and unpickling can run any code. Convert "
                "them where you trust them: transformers.AutoModelForCausalLM.from_pretrained(path)"
                ".save_pretrained(new_path)"
            )
        raise InputError(f"path: {folder} holds neither {WEIGHTS} nor {INDEX}")
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CorruptError(f"{folder / INDEX} has no weight_map of tensors and files: fetch it again")
    files: dict[Path, list[str] | None] = {}
    for name, file in places.items():
        path = folder / Path(file).name
        if not path.is_file():
            raise InputError(f"path: {folder} lacks {file}, which {INDEX} names: fetch it too")
        names = files.setdefault(path, [])
        assert names is not None
        names.append(name)
    return files


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CorruptError(f"{path} is cut short or is no safetensors file ({error}): fetch it again") from error


def _shards(tensors: dict[str, Tensor], most: int) -> list[list[str]]:
    """The names in order, cut so that each part has at most `most` bytes, or one tensor."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > most:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += tensor.nbytes
    return shards


def _alone(tensor: Tensor) -> Tensor:
    """On the CPU and in memory of its own: a part of a larger tensor is copied, safetensors refuses those."""
    tensor = tensor.detach().to("cpu").contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
