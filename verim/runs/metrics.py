"""A log of JSON lines: appended a whole line at a time, cut back to a known length when a run resumes."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verim.errors import CorruptError, SpaceError
from verim.runtime.files import is_full

_BINARY = getattr(os, "O_BINARY", 0)
"""On Windows a file is else opened as text: each line end would grow by a byte and the lengths would be wrong."""


class MetricsLog:
    """The file `path`, open for appending; close it after use.

    A line is handed to the operating system as it is logged, so a killed process loses none; `sync` brings
    them to the disk."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        """Opens `path` and cuts away what lies beyond `keep_bytes`: lines of steps that will be done again,
        and a line torn by a kill. Raises `CorruptError` where the file is shorter than that."""
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        self.bytes = os.fstat(self._file).st_size
        if self.bytes < keep_bytes:
            os.close(self._file)
            raise CorruptError(
                f"{path} has {self.bytes} bytes, its checkpoint counts on {keep_bytes}: lines were lost. "
                f"Remove {path.parent} and run again"
            )
        self._cut(keep_bytes)

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds `record` as one line. A number that JSON lacks (NaN, infinity) is written as null.

        Raises `SpaceError` where the disk is full; the file then ends with the line before."""
        line = (json.dumps(finite(record), allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._cut(self.bytes)
            if is_full(error):
                message = f"no space left to write {self.path}: free some space there, or name another place"
                raise SpaceError(error.errno, message) from error
            raise
        self.bytes += len(line)

    def sync(self) -> None:
        """Returns when every line is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file; appending ends."""
        os.close(self._file)

    def _cut(self, size: int) -> None:
        os.ftruncate(self._file, size)
        self.bytes = size


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None for the numbers that JSON lacks (NaN, infinity)."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a log that may still be growing: a last line without its end is left out.

    Raises `CorruptError` where a whole line does not parse."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise CorruptError(f"{path} holds a line that is not JSON ({error}): remove {path.parent}") from error
