"""From files of text to a data set: read once, duplicates out, tokenizer trained, shards written."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from verim import __version__
from verim.data.documents import LARGEST_DOCUMENT, DocumentReader
from verim.data.encoding import ByteEncoder, Encoder, check_tokenizer, open_tokenizer, train_bpe
from verim.data.files import find_files, printable
from verim.data.manifest import PARTS, SOURCES, TOKEN_BYTES, Manifest
from verim.data.near import keep_far
from verim.data.shards import PartWriter
from verim.data.split import choose_held_out, cut_note, largest_piece
from verim.data.spool import Spool
from verim.data.stream import token_type
from verim.errors import BusyError, InputError, SpaceError
from verim.runtime.files import is_full

_ENCODED_BYTES = 1 << 20
"""Text that is encoded at once."""

Watcher = Callable[[str, int, int], None]
"""Told of a stage, of the bytes of text done in it and of those to do (0: unknown)."""


@dataclass(frozen=True)
class BuildConfig:
    """How text becomes a data set."""

    tokenizer: str = "byte"
    """byte; bpe:VOCAB trains one on the text; a tokenizer.json, or a folder with one; hf:NAME of a model on the Hub."""
    separator: str | None = None
    """The token of a given tokenizer that stands after each document; guessed if none is named."""
    field: str = "text"
    """Where JSON lines and Parquet hold the text."""
    skip_invalid: bool = False
    """Leave out, and count, documents that are no UTF-8 text or lack the field, instead of stopping there."""
    held_out: float = 0.07
    """The share of the bytes that is held out, as whole documents; 0 for none."""
    held_out_bytes: int = 1 << 25
    """So many bytes are held out at most."""
    near_duplicates: float | None = None
    """Leave out documents that resemble an earlier one so much (0.8, say; 1: the same words)."""
    sample_bytes: int = 1 << 27
    """A tokenizer is trained on so much of the text at most."""
    shard_tokens: int = 1 << 28
    """A file is full from so many tokens on."""

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer)
        if self.separator is not None and (self.tokenizer == "byte" or self.tokenizer.startswith("bpe:")):
            raise InputError(
                f"separator: got {self.separator!r}, but {self.tokenizer} has one of its own: leave it out"
            )
        if not 0 <= self.held_out < 0.5:
            raise InputError(f"held_out: got {self.held_out}, expected at least 0 and less than 0.5")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise InputError(
                f"near_duplicates: got {self.near_duplicates}, expected a similarity above 0, at most 1 (0.8, say)"
            )
        for name in ("held_out_bytes", "sample_bytes", "shard_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")


def build(
    paths: Sequence[str | Path],
    out: str | Path,
    config: BuildConfig,
    watcher: Watcher = lambda stage, done, total: None,
) -> Manifest:
    """Builds the data set of the text in `paths` (files and folders, see `DocumentReader`) in the directory `out`.

    Memory holds 48 bytes a document (with near duplicates some hundred more), a few documents and what the tokenizer's
    training needs; the text lies on the disk meanwhile, beside `out`. The directory appears at the end, whole or not at
    all. What is held out follows from the documents' content alone (see `verim.data.split`); tokenizers are trained on
    the rest.

    Raises `InputError` for what cannot be read, too little text, or an `out` that exists; `BusyError` where another
    process builds the same; `SpaceError` where the disk is full.
    """
    out = Path(out)
    if not paths:
        raise InputError("paths: got none, expected files or folders of text")
    with _beside(out) as folder, Spool(folder / "spool") as spool:
        reader = DocumentReader(config.field, config.skip_invalid)
        _read(paths, out, reader, spool, folder, watcher)
        duplicates = spool.index()
        near = 0
        if config.near_duplicates is not None:
            near = keep_far(spool, config.near_duplicates, watcher)
        name = ", ".join(printable(path) for path in paths)
        if not len(spool):
            left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reader.skipped.items()))
            raise InputError(f"{name} has no text{f' ({left_out} left out)' if left_out else ''}: name files with text")
        notes = []
        if reader.cut_files:
            notes.append(f"{reader.cut_files:,} text files above {LARGEST_DOCUMENT:,} bytes were cut at paragraphs.")
        held_out, more = _hold_out(spool, config, name)
        encoder = _encoder(spool, held_out, config, watcher)
        exact, shards = _write(spool, held_out, encoder, folder, config, watcher)
        files = [SOURCES, encoder.save(folder)]
        if exact:
            np.save(folder / TOKEN_BYTES, encoder.token_bytes)
            files.append(TOKEN_BYTES)
        manifest = Manifest(
            name=name,
            verim=__version__,
            corpus_sha256=spool.sha256(),
            tokenizer=config.tokenizer,
            vocab=encoder.vocab,
            separator=encoder.separator,
            token_type=token_type(encoder.vocab),
            **shards,
            files={file: _finished(folder / file) for file in files if file is not None},
            duplicates=duplicates,
            near_duplicates=near,
            skipped=dict(reader.skipped),
            notes=(*notes, *more),
            settings=asdict(config),
        )
        manifest.save(folder)
    return manifest


def _read(
    paths: Sequence[str | Path],
    out: Path,
    reader: DocumentReader,
    spool: Spool,
    folder: Path,
    watcher: Watcher,
) -> None:
    done = 0
    with (folder / SOURCES).open("w", encoding="utf-8") as sources:
        for found in find_files(paths, (folder, out)):
            documents = 0
            for text in reader.read(found):
                spool.add(text)
                documents, done = documents + 1, done + len(text)
                watcher("reading", done, 0)
            if documents:
                line = {"path": printable(found.path), "sha256": reader.digest, "documents": documents}
                sources.write(json.dumps(line) + "\n")


def _hold_out(spool: Spool, config: BuildConfig, name: str) -> tuple[np.ndarray, list[str]]:
    """Which documents are held out, as a mask, and what there is to say of it."""
    if not config.held_out:
        return np.zeros(len(spool), bool), []
    notes = []
    chosen = _chosen(spool, config)
    if chosen is None:
        whole, largest = len(spool), largest_piece(_share(spool, config))
        spool.cut(largest)
        chosen = _chosen(spool, config)
        notes.append(cut_note(whole, len(spool), largest, _share(spool, config) / spool.sizes.sum()))
    if chosen is None:
        raise InputError(
            f"{name} has {spool.sizes.sum():,} bytes of distinct text: too little to hold {config.held_out:.0%} out; "
            "name more text, or hold none out (--held-out 0)"
        )
    mask = np.zeros(len(spool), bool)
    mask[chosen] = True
    return mask, notes


def _share(spool: Spool, config: BuildConfig) -> float:
    return min(float(spool.sizes.sum()) * config.held_out, float(config.held_out_bytes))


def _chosen(spool: Spool, config: BuildConfig) -> np.ndarray | None:
    order = spool.by_digest()
    chosen = choose_held_out(spool.sizes[order], _share(spool, config))
    return None if chosen is None else order[chosen]


def _encoder(spool: Spool, held_out: np.ndarray, config: BuildConfig, watcher: Watcher) -> Encoder:
    if config.tokenizer == "byte":
        return ByteEncoder()
    if not config.tokenizer.startswith("bpe:"):
        return open_tokenizer(config.tokenizer, config.separator)
    order = spool.by_digest()
    numbers = order[~held_out[order]]
    sampled = np.cumsum(spool.sizes[numbers])
    numbers = np.sort(numbers[: 1 + int(np.searchsorted(sampled, config.sample_bytes))])
    total = int(spool.sizes[numbers].sum())

    def texts() -> Iterator[bytes]:
        done = 0
        for text in spool.texts(numbers):
            done += len(text)
            watcher("training the tokenizer", done, total)
            yield text

    return train_bpe(texts(), int(config.tokenizer.removeprefix("bpe:")))


def _write(
    spool: Spool, held_out: np.ndarray, encoder: Encoder, folder: Path, config: BuildConfig, watcher: Watcher
) -> tuple[bool, dict[str, tuple]]:
    """The shards by part; and whether every document's tokens say its bytes exactly."""
    kind, done, total = token_type(encoder.vocab), 0, int(spool.sizes.sum())
    token_bytes, exact = encoder.token_bytes, True
    with ExitStack() as stack:
        writers = [
            stack.enter_context(PartWriter(folder, part, kind, encoder.separator, config.shard_tokens))
            for part in PARTS
        ]
        for numbers in _by_size(spool.sizes):
            texts = list(spool.texts(numbers))
            for number, text, tokens in zip(numbers, texts, encoder.encode(texts), strict=True):
                exact = exact and int(token_bytes[tokens].sum()) == len(text)
                writers[int(held_out[number])].add(tokens, len(text))
                done += len(text)
            watcher("writing tokens", done, total)
        return exact, {part: writer.finish() for part, writer in zip(PARTS, writers, strict=True)}


def _by_size(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of the documents, so many at a time that their text has about `_ENCODED_BYTES` bytes."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _ENCODED_BYTES, "right")))
        yield np.arange(first, last)
        first = last


def _finished(path: Path) -> str:
    """Brings the file to the disk; its SHA-256."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A directory beside `out`, that becomes `out` if all goes well, and is removed if not."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{printable(out)} exists: remove it, or name another directory with --out")
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BusyError(f"{printable(out)}: another process is building it: wait for it, or name another") from error
    try:
        for left in folder.iterdir():  # by a build that was killed
            if left.name != ".lock":
                left.unlink()
        yield folder
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)
        folder.replace(out)
    except BaseException as error:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and is_full(error):
            message = (
                f"no space left to build {printable(out)}: free some space there, or name another place with --out"
            )
            raise SpaceError(error.errno, message) from error
        raise
