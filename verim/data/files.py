"""The text files under some paths, in one order on every machine; what is no text is counted, not read."""

import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from verim.errors import InputError

# Present on some machines and left out by some distributions, or of other owners: not the library itself.
_NOT_THE_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}

_SNIFFED = 1 << 16
"""A file with a NUL among its first bytes is no text: the rest, which may be huge, is not read."""


@dataclass
class TextFiles:
    """The contents of text files, none of them empty, and how many files were left out and why.

    The reasons are `binary` (a NUL byte), `undecodable` (not UTF-8), `empty`, `unreadable` and `of a study`
    (below the folder of a study: what Verim wrote)."""

    contents: list[bytes] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def read(self, path: Path, named: bool = False) -> None:
        """Adds the file at `path`, or counts why not. One that the user `named` must be readable."""
        try:
            with path.open("rb") as file:
                content = file.read(_SNIFFED)
                if b"\0" not in content:
                    file.seek(0)
                    content = file.read()
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


def read_text_files(paths: Sequence[str | Path], exclude: Sequence[Path] = ()) -> TextFiles:
    """Reads the files named in `paths` and those in the folders named there, at any depth, sorted by name.

    Inside folders, names that begin with a dot are left out; links are followed, but no folder is visited
    twice (so a loop of links ends). The files below the folder of a study (`config.json` beside `ladder.json`
    or `corpus.safetensors`) are counted, not read: no study trains on what another one wrote. The folders in
    `exclude` (the study's own, say, which is not yet known by its files) are passed over without a count.

    Raises `InputError` where a path does not exist, cannot be read, or is neither a file nor a folder.
    """
    files = TextFiles()
    for found in find_files(paths, exclude):
        if found.of_a_study:
            files.skipped["of a study"] += 1
        else:
            files.read(found.path, found.named)
    return files


class Found(NamedTuple):
    """A file that `paths` name, or that lies in a folder of theirs; whether in that of a study."""

    path: Path
    named: bool
    of_a_study: bool


def find_files(paths: Sequence[str | Path], exclude: Sequence[Path] = ()) -> Iterator[Found]:
    """The files that `read_text_files` looks at, in its order, and with its errors."""
    visited = {_identity(folder) for folder in exclude if folder.exists()}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            yield from (Found(found, False, of_a_study) for found, of_a_study in _walk(path, visited))
        elif path.is_file():
            yield Found(path, True, False)
        elif path.exists():
            raise InputError(f"{printable(path)} is neither a file nor a folder: name files or folders of text")
        else:
            raise InputError(f"{printable(path)} does not exist: name files or folders of text")


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


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _walk(folder: Path, visited: set[tuple[int, int]], of_a_study: bool = False) -> Iterator[tuple[Path, bool]]:
    """The files below `folder`, and of each whether it lies in the folder of a study."""
    identity = _identity(folder)
    if identity in visited:
        return
    visited.add(identity)
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: os.fsencode(entry.name))
    except PermissionError as error:
        raise InputError(f"the folder {printable(folder)} cannot be listed: give it read permission") from error
    names = {entry.name for entry in entries}
    of_a_study = of_a_study or ("config.json" in names and not names.isdisjoint(("ladder.json", "corpus.safetensors")))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, visited, of_a_study)
        elif entry.is_file():
            yield entry, of_a_study


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
