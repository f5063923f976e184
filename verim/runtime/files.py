"""Files written whole or not at all: beside their place, flushed to the disk, then renamed over it."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verim.errors import CorruptError, SpaceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write(temporary)` with a path beside `path`, flushes the file and renames it over `path`.

    Whatever happens (an exception, a kill, a full disk), `path` holds either its old or its new content, whole.
    Raises `SpaceError` where the disk is full; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            message = f"no space left to write {path}: free some space there, or name another place with --out"
            raise SpaceError(error.errno, message) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, atomically."""
    write_atomically(path, lambda temporary: _write_bytes(temporary, text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as indented JSON, atomically. NaN and infinity are refused: JSON has neither."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises `CorruptError` where it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} is not valid JSON ({error}): restore it or remove it") from error


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
