"""The files of a part of a data set: tokens, and where documents end; written once in order, then mapped."""

import hashlib
import os
from pathlib import Path
from typing import IO

import numpy as np

from verim.data.files import printable
from verim.data.manifest import Shard
from verim.data.stream import TYPES
from verim.errors import CorruptError

_BLOCK = 1 << 20


class PartWriter:
    """Appends documents to the shards of `part`; a new shard begins once one has `shard_tokens` tokens."""

    def __init__(self, folder: Path, part: str, token_type: str, separator: int, shard_tokens: int) -> None:
        self._folder, self._part = folder, part
        self._type = np.dtype(TYPES[token_type]).newbyteorder("<")
        self._separator = np.array([separator], self._type)
        self._shard_tokens = shard_tokens
        self._done: list[Shard] = []
        self._open: _OpenShard | None = None

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close_files()

    def add(self, tokens: np.ndarray, size: int) -> None:
        """A document of `size` bytes of text."""
        if self._open is None:
            self._open = _OpenShard(self._folder, f"{self._part}-{len(self._done):05d}")
        self._open.add(np.concatenate([tokens.astype(self._type), self._separator]), size)
        if self._open.tokens >= self._shard_tokens:
            self._close()

    def finish(self) -> tuple[Shard, ...]:
        """The shards, all of them on the disk."""
        self._close()
        return tuple(self._done)

    def _close(self) -> None:
        if self._open is not None:
            self._done.append(self._open.close())
            self._open = None


class _OpenShard:
    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.tokens, self.documents, self.bytes = name, 0, 0, 0
        self._files = [(folder / f"{name}.{kind}").open("wb", buffering=_BLOCK) for kind in ("tokens", "index")]
        self._hashes = [hashlib.sha256() for _ in self._files]

    def add(self, tokens: np.ndarray, size: int) -> None:
        self.tokens += len(tokens)
        self.documents += 1
        self.bytes += size
        for file, digest, array in zip(
            self._files, self._hashes, (tokens, np.array([self.tokens, self.bytes], "<i8")), strict=True
        ):
            file.write(array.data)
            digest.update(array.data)

    def close(self) -> Shard:
        for file in self._files:
            _flush(file)
        self.close_files()
        digests = (digest.hexdigest() for digest in self._hashes)
        return Shard(self.name, self.tokens, self.documents, self.bytes, *digests)

    def close_files(self) -> None:
        for file in self._files:
            file.close()


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def map_tokens(folder: Path, shard: Shard, token_type: str) -> np.ndarray:
    """The shard's tokens, mapped. Raises `CorruptError` where the file is missing or of another size."""
    kind = np.dtype(TYPES[token_type]).newbyteorder("<")
    return _mapped(folder / f"{shard.name}.tokens", kind, shard.tokens)


def map_index(folder: Path, shard: Shard) -> np.ndarray:
    """[documents, 2]: the end of each document's tokens (its separator included) and of its bytes, mapped."""
    return _mapped(folder / f"{shard.name}.index", np.dtype("<i8"), 2 * shard.documents).reshape(-1, 2)


def _mapped(path: Path, kind: np.dtype, count: int) -> np.ndarray:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise CorruptError(f"{printable(path)} is missing: restore it, or build the data anew") from error
    if size != count * kind.itemsize:
        raise CorruptError(
            f"{printable(path)} has {size:,} bytes, expected {count * kind.itemsize:,}: restore it, or build the data "
            "anew"
        )
    return np.memmap(path, kind, "r", shape=(count,)).view(np.ndarray)


def check_file(path: Path, sha256: str) -> None:
    """Raises `CorruptError` where the content of `path` has not the checksum `sha256`."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CorruptError(f"{printable(path)} is missing: restore it, or build the data anew") from error
    if found != sha256:
        raise CorruptError(
            f"{printable(path)} is damaged: its content has SHA-256 {found[:12]}…, expected {sha256[:12]}…; restore "
            "it, or build the data anew"
        )
