"""Files are written whole or not at all; the errors are what the command line and Python expect."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from verim.errors import BusyError, CorruptError, InputError, SpaceError, VerimError
from verim.runtime.files import is_full, read_json, write_atomically, write_bytes, write_json, write_text


def test_every_error_is_one_that_the_command_line_catches() -> None:
    for error in (InputError, BusyError, CorruptError, SpaceError):
        assert issubclass(error, VerimError)
    assert issubclass(InputError, ValueError)
    assert issubclass(SpaceError, OSError)


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "ä</script>"], "b": {}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_what_json_lacks_is_refused_and_the_old_content_stays(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, float("nan"))
    assert read_json(path) == 1


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_broken_json_names_its_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"value\.json is not valid JSON"):
        read_json(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_space_error_and_leaves_the_old_content(tmp_path: Path, number: int) -> None:
    path = tmp_path / "value.txt"
    write_text(path, "old")

    def fill(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(SpaceError, match=r"no space left to write .*value\.txt") as caught:
        write_atomically(path, fill)
    assert caught.value.errno == number
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.txt"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), PermissionError(errno.EACCES, "no"), ValueError("x")])
def test_any_other_failure_passes_through_and_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise failure

    with pytest.raises(type(failure)):
        write_atomically(tmp_path / "value.txt", fail)
    assert list(tmp_path.iterdir()) == []


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "é🙂")
    assert (tmp_path / "text").read_bytes() == "é🙂".encode()
    assert json.loads('"é🙂"') == (tmp_path / "text").read_text(encoding="utf-8")


def test_what_no_room_means() -> None:
    assert is_full(OSError(errno.ENOSPC, "full"))
    assert not is_full(PermissionError(errno.EACCES, "closed"))
    assert not is_full(OSError("without a number"))


def test_what_is_flushed_is_open_for_writing_and_the_folder_comes_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows cannot tell how a descriptor was opened")
    flushed = []

    def record(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        flushed.append((folder, writable, (tmp_path / "value").exists()))

    monkeypatch.setattr(os, "fsync", record)
    write_bytes(tmp_path / "value", b"new")
    assert flushed == [(False, True, False), (True, False, True)]
    assert (tmp_path / "value").read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="no folder is flushed there")
def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    write_bytes(tmp_path / "value", b"new")
    assert (tmp_path / "value").read_bytes() == b"new"
