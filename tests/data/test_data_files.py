"""Which files are read as text, in which order, and what is said of the others."""

import errno
import io
import os
from pathlib import Path
from typing import IO, Any

import pytest

from verim.data.files import printable, read_standard_library, read_text_files
from verim.errors import InputError


def write(folder: Path, **contents: bytes) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def test_folders_are_read_in_one_order_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path / "b", z=b"bz", a=b"ba")
    write(tmp_path / "a", b=b"ab")
    write(tmp_path, c=b"c")
    assert read_text_files([tmp_path]).contents == [b"ab", b"ba", b"bz", b"c"]
    assert read_text_files([tmp_path / "c", tmp_path / "b"]).contents == [b"c", b"ba", b"bz"]


def test_what_is_no_text_is_counted_by_reason(tmp_path: Path) -> None:
    write(
        tmp_path,
        binary=b"GIF\0\x01",
        latin1="é".encode("latin-1"),
        utf16="text".encode("utf-16"),
        cut="🙂".encode()[:3],
        empty=b"",
        text="é🙂\r\n".encode(),
        bom=b"\xef\xbb\xbfx",
    )
    files = read_text_files([tmp_path])
    assert files.contents == [b"\xef\xbb\xbfx", "é🙂\r\n".encode()]
    assert files.skipped == {"binary": 2, "undecodable": 2, "empty": 1}


def test_of_a_binary_file_only_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(size)
            return super().read(size)

    write(tmp_path, huge=b"")
    monkeypatch.setattr(Path, "open", lambda path, mode: Watched(b"x" * 60_000 + b"\0" * 60_000))
    assert read_text_files([tmp_path]).skipped == {"binary": 1}
    assert reads == [1 << 16]


def test_a_nul_beyond_the_beginning_and_long_text_are_still_told_apart(tmp_path: Path) -> None:
    text = ("é" * 100_001).encode()  # a character lies across the end of what is read first
    write(tmp_path, binary=b"x" * 100_000 + b"\0", text=b"x" + text)
    files = read_text_files([tmp_path])
    assert files.contents == [b"x" + text]
    assert files.skipped == {"binary": 1}


@pytest.mark.parametrize("marker", ["ladder.json", "corpus.safetensors"])
def test_a_study_is_not_read_wherever_it_lies(tmp_path: Path, marker: str) -> None:
    study = tmp_path / "a" / "study"
    write(tmp_path, text=b"t")
    write(tmp_path / "a", config=b"c")
    write(study, **{"config.json": b"{}", marker: b"{}", ".lock": b""})
    write(study / "runs", **{"page.html": b"<p>"})
    files = read_text_files([tmp_path])
    assert files.contents == [b"c", b"t"]
    assert files.skipped == {"of a study": 3}
    assert read_text_files([study]).contents == []
    assert read_text_files([study / "config.json"]).contents == [b"{}"]  # named by the user


def test_one_of_a_studys_names_does_not_make_a_study(tmp_path: Path) -> None:
    write(tmp_path / "model", **{"config.json": b"{}", "model.json": b"{}"})
    write(tmp_path / "house", **{"ladder.json": b"2 m"})
    assert read_text_files([tmp_path]).contents == [b"2 m", b"{}", b"{}"]


def test_what_is_excluded_is_passed_over_by_any_name(tmp_path: Path) -> None:
    write(tmp_path, text=b"t")
    write(tmp_path / "out", **{"config.json": b"{}"})
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for own in (tmp_path / "out", tmp_path / "link", tmp_path / "out" / ".." / "out"):
        files = read_text_files([tmp_path, tmp_path / "out"], exclude=[own, tmp_path / "not yet there"])
        assert files.contents == [b"t"]
        assert files.skipped == {}


def test_hidden_names_are_left_out_of_folders_but_read_when_named(tmp_path: Path) -> None:
    write(tmp_path, **{".hidden": b"h", "seen": b"s"})
    write(tmp_path / ".git", config=b"g")
    assert read_text_files([tmp_path]).contents == [b"s"]
    assert read_text_files([tmp_path / ".hidden", tmp_path / ".git"]).contents == [b"h", b"g"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    write(tmp_path / "in", text=b"t")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "nowhere").symlink_to("missing")
    (tmp_path / "linked").symlink_to(tmp_path / "in" / "text")
    assert read_text_files([tmp_path]).contents == [b"t", b"t"]


def test_a_pipe_in_a_folder_does_not_block(tmp_path: Path) -> None:
    write(tmp_path, text=b"t")
    os.mkfifo(tmp_path / "pipe")
    assert read_text_files([tmp_path]).contents == [b"t"]
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read_text_files([tmp_path / "pipe"])


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\\nelse does not exist: name files or folders"):
        read_text_files([tmp_path / "nowhere\nelse"])


def test_a_file_that_cannot_be_read_is_an_error_only_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, text=b"t", closed=b"c")
    open_path = Path.open

    def refuse(path: Path, mode: str) -> IO[Any]:  # root may read any file, so the mode of the file would not do
        if path.name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_path(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    files = read_text_files([tmp_path])
    assert files.contents == [b"t"]
    assert files.skipped == {"unreadable": 1}
    with pytest.raises(InputError, match=r"closed cannot be read \(Permission denied\)"):
        read_text_files([tmp_path / "closed"])


def test_undecodable_file_names_are_read_and_can_be_printed(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff<script>\n"
    with open(name, "wb") as file:
        file.write(b"t")
    assert read_text_files([tmp_path]).contents == [b"t"]
    shown = printable(os.fsdecode(name))
    assert shown == f"{tmp_path}/\\udcff<script>\\n"
    shown.encode()


def test_the_standard_library_is_python_without_its_tests() -> None:
    contents = read_standard_library().contents
    assert 8e6 < sum(map(len, contents)) < 20e6
    assert any(b"class ArgumentParser" in content for content in contents)
    assert not any(b"class TestArgumentParserPickleable" in content for content in contents)
