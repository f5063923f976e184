"""Documents, one after the other, from text files, JSON lines and Parquet, also compressed: never a whole file.

The kind follows from the name: `.jsonl` and `.ndjson` hold a JSON object a line, `.parquet` a table, any other file is
one document of UTF-8 text; `.gz` and `.zst` behind any of these (but Parquet) say how it is compressed.
"""

import gzip
import hashlib
import importlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from verim.data.files import Found, printable
from verim.data.split import cut
from verim.errors import InputError

LARGEST_DOCUMENT = 1 << 20
"""A text file above so many bytes is cut at paragraphs into documents, so that it never lies in memory whole."""

_PARQUET_ROWS = 256
_BUFFER = 1 << 18


class DocumentReader:
    """Reads documents as UTF-8 bytes.

    What is no document stops it with an `InputError` that names the file and the place in it: bytes that are not
    UTF-8, a NUL character (which ends documents in the byte vocabulary), a missing field, a line that is no JSON, a
    compressed file that is cut short. With `skip_invalid` such documents are counted in `skipped`, by reason, and left
    out; so are empty ones always, and files of a folder that hold NUL bytes (they are no text: images, programs) or
    cannot be opened. `cut_files` counts the text files that were cut.
    """

    def __init__(self, field: str = "text", skip_invalid: bool = False) -> None:
        self.field, self.skip_invalid = field, skip_invalid
        self.skipped: Counter[str] = Counter()
        self.cut_files = 0

    def read(self, found: Found) -> Iterator[bytes]:
        """The documents of a file, none empty. Then `digest` is the SHA-256 of the file as it lies on the disk."""
        self.digest = ""
        if found.of_a_study:
            self.skipped["of a study"] += 1
            return
        try:
            file = found.path.open("rb")
        except OSError as error:
            if found.named:
                message = f"{printable(found.path)} cannot be read ({error.strerror}): name a file that can be read"
                raise InputError(message) from error
            self.skipped["unreadable"] += 1
            return
        with file:
            hashed = _Hashed(file)
            yield from self._documents(found, hashed)
            self.digest = hashed.finish()

    def _documents(self, found: Found, hashed: "_Hashed") -> Iterator[bytes]:
        name, compression = found.path.name.lower(), ""
        if name.endswith((".gz", ".zst")):
            name, _, compression = name.rpartition(".")
        if name.endswith(".parquet"):
            if compression:
                raise InputError(f"{printable(found.path)}: a Parquet file compressed again is not read: unpack it")
            yield from self._rows(found.path)
            return
        try:
            stream = _unpacked(found.path, hashed, compression)
            if name.endswith((".jsonl", ".ndjson")):
                yield from self._lines(found.path, stream)
            else:
                yield from self._text(found, stream)
        except _DamagedError as error:
            self._refuse("damaged", f"{printable(found.path)} {error}: fetch it again")

    def _refuse(self, reason: str, message: str) -> None:
        if not self.skip_invalid:
            raise InputError(f"{message}, or leave such documents out with --skip-invalid")
        self.skipped[reason] += 1

    def _sound(self, text: bytes, where: str, begin: int) -> bool:
        """Whether `text`, which begins at byte `begin` of what `where` names, is a document."""
        if not text:
            self.skipped["empty"] += 1
            return False
        if (place := text.find(b"\0")) >= 0:
            self._refuse("binary", f"{where} has a NUL character at byte {begin + place}: expected text")
            return False
        try:
            text.decode()
        except UnicodeDecodeError as error:
            place = begin + error.start
            self._refuse("undecodable", f"{where} is not UTF-8 at byte {place} ({error.reason}): convert it to UTF-8")
            return False
        return True

    def _text(self, found: Found, stream: BinaryIO) -> Iterator[bytes]:
        """The file as one document, or pieces of a large one."""
        where, begin = printable(found.path), 0
        held = bytearray(stream.read(LARGEST_DOCUMENT + 1))
        if not found.named and b"\0" in held:
            self.skipped["binary"] += 1
            return
        self.cut_files += len(held) > LARGEST_DOCUMENT
        while len(held) > LARGEST_DOCUMENT:
            end = cut(held, 0, LARGEST_DOCUMENT)
            piece = bytes(held[:end])
            if self._sound(piece, where, begin):
                yield piece
            begin += end
            held = held[end:] + stream.read(end)
        if (held or not begin) and self._sound(bytes(held), where, begin):
            yield bytes(held)

    def _lines(self, path: Path, stream: BinaryIO) -> Iterator[bytes]:
        """The field of the JSON object on every line."""
        begin = 0
        for number, line in enumerate(stream, 1):
            where, place = f"{printable(path)}, line {number}", begin
            begin += len(line)
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError as error:
                at = place + error.start
                self._refuse("undecodable", f"{printable(path)} is not UTF-8 at byte {at} ({error.reason}): convert it")
                continue
            except (ValueError, RecursionError) as error:
                self._refuse("no JSON", f"{where} is no JSON ({error}): write one object a line")
                continue
            text = record.get(self.field) if isinstance(record, dict) else None
            if isinstance(text, str):
                yield from self._field(text, where)
            else:
                self._refuse("without the field", f"{where} {self._missing(record)}: name the field of the text")

    def _field(self, text: str, where: str) -> Iterator[bytes]:
        try:
            document = text.encode()
        except UnicodeEncodeError as error:
            self._refuse("undecodable", f"{where}: the text has a lone surrogate at character {error.start}: repair it")
            return
        if self._sound(document, where, 0):
            yield document

    def _missing(self, record: Any) -> str:
        if not isinstance(record, dict):
            return f"holds {type(record).__name__}, expected an object with the text in field {self.field!r}"
        if self.field in record:
            return f"has {type(record[self.field]).__name__} in field {self.field!r}, expected a string"
        return f"has no field {self.field!r}, but {', '.join(map(repr, record)) or 'none at all'} (--field NAME)"

    def _rows(self, path: Path) -> Iterator[bytes]:
        """The column of a Parquet file, some rows at a time."""
        parquet = _extra("pyarrow.parquet", path)
        arrow = _extra("pyarrow", path)
        where = printable(path)
        try:
            with parquet.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                if self.field not in columns:
                    raise InputError(
                        f"{where} has no field {self.field!r}, but {', '.join(map(repr, columns))}: name the field of "
                        "the text with --field"
                    )
                kind = file.schema_arrow.field(self.field).type
                if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                    raise InputError(f"{where} has {kind} in field {self.field!r}, expected string: name another field")
                row = 0
                for batch in file.iter_batches(_PARQUET_ROWS, columns=[self.field], use_threads=False):
                    for value in batch.column(0).cast(arrow.large_binary()).to_pylist():
                        row += 1
                        if value is None:
                            self._refuse("without the field", f"{where}, row {row} has no text: fill it in")
                        elif self._sound(value, f"{where}, row {row}", 0):
                            yield value
        except arrow.ArrowException as error:
            self._refuse("damaged", f"{where} is no Parquet file that can be read ({error}): fetch it again")


class _DamagedError(Exception):
    """A compressed stream that cannot be unpacked."""


class _Hashed(io.RawIOBase):
    """A file whose bytes go through SHA-256 as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        self._hash.update(block)
        buffer[: len(block)] = block
        return len(block)

    def finish(self) -> str:
        """The digest of the whole file; reads what was not asked for."""
        while block := self._file.read(_BUFFER):
            self._hash.update(block)
        return self._hash.hexdigest()


class _Unpacked(io.RawIOBase):
    """What a compressed stream holds."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise _DamagedError(f"cannot be unpacked ({error})") from error
        buffer[: len(block)] = block
        return len(block)


def _unpacked(path: Path, hashed: _Hashed, compression: str) -> BinaryIO:
    file = io.BufferedReader(hashed, _BUFFER)
    if compression == "gz":
        return io.BufferedReader(_Unpacked(gzip.GzipFile(fileobj=file)), _BUFFER)
    if compression == "zst":
        return io.BufferedReader(_Unpacked(_extra("pyarrow", path).CompressedInputStream(file, "zstd")), _BUFFER)
    return file


def _extra(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{printable(path)} is read by pyarrow, which is not installed: pip install 'verim[data]'"
        ) from error
