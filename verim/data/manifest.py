"""What a data set's directory says of itself: `manifest.json`, written last, with its own checksum.

manifest.json         what stands below; a directory without it is no data set
tokenizer.json        unless the tokens are bytes
token_bytes.npy       bytes of text that each token stands for, where all documents agree with their tokens' sum
sources.jsonl         a line a file that was read: path, SHA-256, documents
train-00000.tokens    tokens, little-endian, each document's followed by the separator
train-00000.index     of each document, where its tokens end and where its bytes end, in this shard: two int64
held_out-00000....    the same of the held-out part
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from verim.data.files import printable
from verim.data.stream import TYPES
from verim.errors import CorruptError, InputError
from verim.runtime.files import read_json, write_json

MANIFEST, SOURCES, TOKEN_BYTES = "manifest.json", "sources.jsonl", "token_bytes.npy"
PARTS = ("train", "held_out")
_FORMAT, _VERSION = "verim data", 1


@dataclass(frozen=True)
class Shard:
    """Tokens in a file `name`.tokens and where documents end in `name`.index. `bytes` are of text, no separators."""

    name: str
    tokens: int
    documents: int
    bytes: int
    tokens_sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a data set consists of and how it came to be.

    `name` are the paths that were named. `corpus_sha256` is the SHA-256 over the sorted SHA-256 of the documents, in
    hexadecimal: the same texts have the same one wherever they lie. `tokenizer` is what was asked for; `vocab` one more
    than the largest token; `token_type` what a token is stored as. `files` are the SHA-256 of the files that are no
    shards. `duplicates` and `near_duplicates` count the documents left out as such, `skipped` others, by reason.
    `settings` are the build's options.
    """

    name: str
    verim: str
    corpus_sha256: str
    tokenizer: str
    vocab: int
    separator: int
    token_type: str
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    files: dict[str, str]
    duplicates: int
    near_duplicates: int
    skipped: dict[str, int]
    notes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.token_type not in TYPES:
            raise InputError(f"token_type: got {self.token_type!r}, expected one of {', '.join(TYPES)}")

    def total(self, name: str, part: str | None = None) -> int:
        """The sum of the shards' `tokens`, `documents` or `bytes`, in `part` or all."""
        parts = PARTS if part is None else (part,)
        return sum(getattr(shard, name) for part in parts for shard in getattr(self, part))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text, with one for each separator, to a token."""
        return (self.total("bytes") + self.total("documents")) / self.total("tokens")

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, whole or not at all."""
        content = json.loads(json.dumps(asdict(self)))
        totals = {part: {name: self.total(name, part) for name in ("tokens", "documents", "bytes")} for part in PARTS}
        record = {"format": _FORMAT, "version": _VERSION, "content": content}
        record |= {"sha256": _digest(content), "totals": totals, "bytes_per_token": round(self.bytes_per_token, 4)}
        write_json(folder / MANIFEST, record)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads and checks the manifest in `folder`.

        Raises `InputError` where there is none or of a newer format, `CorruptError` where it is damaged.
        """
        path = folder / MANIFEST
        if not path.is_file():
            what = "holds no" if folder.is_dir() else "does not exist, so it holds no"
            raise InputError(
                f"{printable(folder)} {what} {MANIFEST}: name a directory that `verim data build` has finished"
            )
        record = read_json(path)
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise InputError(f"{printable(path)} is not of a data set of Verim: name what `verim data build` has made")
        version = record.get("version")
        if not isinstance(version, int) or version > _VERSION:
            raise InputError(
                f"{printable(path)} has format version {version}, this Verim knows up to {_VERSION}: update Verim, or "
                "build the data anew"
            )
        content = record.get("content")
        if not isinstance(content, dict) or _digest(content) != record.get("sha256"):
            raise CorruptError(f"{printable(path)} is damaged, its checksum differs: restore it, or build anew")
        known = {one.name for one in fields(cls)}
        values = {name: value for name, value in content.items() if name in known}
        for part in PARTS:
            values[part] = tuple(Shard(**shard) for shard in values[part])
        return cls(**values | {"notes": tuple(values["notes"])})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
