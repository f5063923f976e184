"""A corpus: whole documents of text, some of them held out, and everything a page needs to name it.

The held-out part is chosen by the documents' content alone: the documents stand in the order of their
SHA-256, and from the front of that order the held-out part is filled. So it does not depend on names, folders
or the order of the paths, and no held-out text is a slice of a training document.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from verim.data.files import TextFiles, printable, read_standard_library, read_text_files
from verim.data.split import choose_held_out, cut_note, largest_piece, pieces
from verim.errors import InputError

VOCABULARY = 256
"""Every byte is a token."""

SEPARATOR = 0
"""The byte after each document: text files hold no NUL."""


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes held out, each document followed by the separator.

    `sha256` is the SHA-256 over the sorted SHA-256 of the documents: the same texts have the same hash
    wherever they lie. `bytes` counts the documents kept, without separators. `skipped` counts the files left
    out, by reason; `notes` are sentences for the reader of a page.
    """

    name: str
    sha256: str
    bytes: int
    train: UInt8[Tensor, " train_bytes"]
    held_out: UInt8[Tensor, " held_out_bytes"]
    train_documents: int
    held_out_documents: int
    duplicates: int
    skipped: dict[str, int]
    notes: tuple[str, ...]


def load_corpus(
    paths: Sequence[str | Path] = (),
    held_out_fraction: float = 0.07,
    least_bytes: int = 0,
    exclude: Sequence[Path] = (),
) -> Corpus:
    """The corpus of the text files in `paths` (files and folders); without any, Python's standard library.

    Exact duplicates are dropped. About `held_out_fraction` of the bytes is held out, as whole documents.
    Where no choice of whole documents comes near that share (one large file, say), the large files are cut at
    paragraphs into documents first, and a note says so. Folders of studies are left out, and so are those in
    `exclude` (see `read_text_files`).

    Raises `InputError` where a path does not exist, there is no text, fewer than `least_bytes` of it, or too little to
    hold any out.
    """
    if not 0 < held_out_fraction < 0.5:
        raise InputError(f"held_out_fraction = {held_out_fraction}: expected more than 0 and less than 0.5")
    files = read_text_files(paths, exclude) if paths else read_standard_library()
    name = ", ".join(printable(path) for path in paths) if paths else _standard_library_name()
    if not files.contents:
        raise InputError(f"{name} has no text{_left_out(files)}: name files or folders of UTF-8 text")

    documents = _distinct(files.contents)
    duplicates = len(files.contents) - len(documents)
    if _size(documents) < least_bytes:
        raise InputError(
            f"{name} has {_size(documents):,} bytes of distinct text{_left_out(files)}, {least_bytes:,} are needed: "
            "name more text, or leave the path out to take Python's standard library"
        )
    notes: list[str] = []
    share = _size(documents) * held_out_fraction
    chosen = _choose_held_out(documents, share)
    if chosen is None:
        whole, largest = len(documents), largest_piece(share)
        documents = _distinct([piece for text in documents.values() for piece in pieces(text, largest)])
        chosen = _choose_held_out(documents, _size(documents) * held_out_fraction)
        notes.append(cut_note(whole, len(documents), largest, held_out_fraction))
    if chosen is None:
        raise InputError(
            f"{name} has {_size(documents):,} bytes of distinct text{_left_out(files)}: too little to hold "
            f"{held_out_fraction:.0%} out; name more text, or leave the path out for Python's library"
        )
    return Corpus(
        name=name,
        sha256=hashlib.sha256("".join(sorted(documents)).encode()).hexdigest(),
        bytes=_size(documents),
        train=_tokens(text for digest, text in documents.items() if digest not in chosen),
        held_out=_tokens(text for digest, text in documents.items() if digest in chosen),
        train_documents=len(documents) - len(chosen),
        held_out_documents=len(chosen),
        duplicates=duplicates,
        skipped=dict(files.skipped),
        notes=tuple(notes),
    )


def _standard_library_name() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"


def _distinct(texts: Sequence[bytes]) -> dict[str, bytes]:
    """The texts by their SHA-256, in the order given."""
    return {hashlib.sha256(text).hexdigest(): text for text in texts}


def _size(documents: dict[str, bytes]) -> int:
    return sum(map(len, documents.values()))


def _choose_held_out(documents: dict[str, bytes], share: float) -> set[str] | None:
    """The hashes of the documents to hold out; None where they cannot be near `share` bytes."""
    ordered = sorted(documents)
    chosen = choose_held_out([len(documents[digest]) for digest in ordered], share)
    return None if chosen is None else {ordered[index] for index in chosen}


def _tokens(texts: Iterator[bytes]) -> UInt8[Tensor, " bytes"]:
    separator = bytes([SEPARATOR])
    return torch.frombuffer(bytearray(b"".join(text + separator for text in texts)), dtype=torch.uint8)


def _left_out(files: TextFiles) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(files.skipped.items()))
    return f" ({reasons} left out)" if reasons else ""
