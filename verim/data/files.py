"""The text files under some paths, in one order on every machine; what is no text is counted, not read."""

import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verim.errors import InputError

# Present on some machines and left out by some distributions, or of other owners: not the library itself.
_NOT_THE_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}


@dataclass
class TextFiles:
    """The contents of text files, none of them empty, and how many files were left out and why.

    The reasons are `binary` (a NUL byte), `undecodable` (not UTF-8), `empty` and `unreadable`."""

    contents: list[bytes] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def read(self, path: Path, named: bool = False) -> None:
        """Adds the file at `path`, or counts why not. One that the user `named` must be readable."""
        try:
            content = path.read_bytes()
        except OSError as error:
            if named:
                message = f"{printable(path)} cannot be read ({error.strerror}): name a file that can be read"
                raise InputError(message) from error
            self.skipped["unreadable"] += 1
            return
        reason = _why_not_text(content)
        if reason:
            self.skipped[reason] += 1
        else:
            self.contents.append(content)


def read_text_files(paths: Sequence[str | Path]) -> TextFiles:
    """Reads the files named in `paths` and those in the folders named there, at any depth, sorted by name.

    Inside folders, names that begin with a dot are left out; links are followed, but no folder is visited
    twice (so a loop of links ends).

    Raises `InputError` where a path does not exist, cannot be read, or is neither a file nor a folder.
    """
    files = TextFiles()
    visited: set[tuple[int, int]] = set()
    for given in paths:
        path = Path(given)
        if path.is_dir():
            for found in _walk(path, visited):
                files.read(found)
        elif path.is_file():
            files.read(path, named=True)
        elif path.exists():
            raise InputError(f"{printable(path)} is neither a file nor a folder: name files or folders of text")
        else:
            raise InputError(f"{printable(path)} does not exist: name files or folders of text")
    return files


def read_standard_library() -> TextFiles:
    """The sources of the running Python's standard library, without its tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files = TextFiles()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_THE_LIBRARY)
        for name in sorted(names):
            if name.endswith(".py"):
                files.read(Path(folder, name))
    if not files.contents:
        raise InputError(f"the standard library's sources are not in {printable(root)}: name a path with text")
    return files


def printable(path: str | Path) -> str:
    """The path as text that can be printed: undecodable bytes and control characters are escaped."""
    text = os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in visited:
        return
    visited.add(identity)
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: os.fsencode(entry.name))
    except PermissionError as error:
        raise InputError(f"the folder {printable(folder)} cannot be listed: give it read permission") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, visited)
        elif entry.is_file():
            yield entry


def _why_not_text(content: bytes) -> str | None:
    if not content:
        return "empty"
    if b"\0" in content:
        return "binary"
    try:
        content.decode()
    except UnicodeDecodeError:
        return "undecodable"
    return None
