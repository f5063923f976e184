"""Files written whole or not at all: beside their place, flushed to the disk, then renamed over it."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verim.errors import CorruptError, SpaceError

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM}


def is_full(error: OSError) -> bool:
    """Whether `error` says that there is no room: the disk is full, a quota or the largest file size is reached."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write(temporary)` with a path beside `path`, flushes the file and renames it over `path`.

    Whatever happens (an exception, a kill, a full disk, a power cut), `path` holds either its old or its new
    content, whole. Raises `SpaceError` where the disk is full; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        with open(temporary, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and is_full(error):
            message = f"no space left to write {path}: free some space there, or name another place with --out"
            raise SpaceError(error.errno, message) from error
        raise


def replace_folder(source: Path, target: Path) -> None:
    """Renames the folder `source`, whose files are on the disk, to `target`; a folder that is there is removed.

    A kill at any moment leaves the old or the new folder as `target`, or the old one as `.NAME.old`, from where
    `recover_folder` brings it back."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    _flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(old: Path) -> None:
    """Undoes what a kill within `replace_folder` left: `.NAME.old` becomes `NAME` again, if that is not there."""
    target = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
    if target.exists():
        shutil.rmtree(old)
    else:
        os.replace(old, target)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as indented JSON, atomically. NaN and infinity are refused: JSON has neither."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises `CorruptError` where it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} is not valid JSON ({error}): restore it or remove it") from error


def _flush_folder(folder: Path) -> None:
    """Brings the folder's entries, so the rename, to the disk. Windows has no such call and needs none."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems cannot flush folders, and a folder may be writable but not readable: the rename is
        # done all the same, only a power cut right now could undo it.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
