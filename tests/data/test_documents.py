"""Documents come out of every kind of file as they went in; what is none is named with its place, or counted."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from verim.data import documents as documents_module
from verim.data.documents import DocumentReader
from verim.data.files import Found
from verim.errors import InputError

TEXTS = ["one\n", "two é 🙂\n\nand more", "  ", 'quotes " and \\ and \u2028', "x" * 300_000]


def read(path: Path, reader: DocumentReader | None = None, named: bool = True) -> list[bytes]:
    return list((reader or DocumentReader()).read(Found(path, named, False)))


def json_lines(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, field: text}) + "\n" for text in texts).encode()


def packed_gzip(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])  # two members, as parallel packers write


def packed_zstd(content: bytes) -> bytes:
    frames = []
    for part in (content[: len(content) // 2], content[len(content) // 2 :]):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(part)
        frames.append(sink.getvalue().to_pybytes())
    return b"".join(frames)


PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": packed_gzip, ".zst": packed_zstd}


@pytest.mark.parametrize("ending", PACKERS)
def test_json_lines_and_text_come_back(tmp_path: Path, ending: str) -> None:
    lines, text = tmp_path / f"a.jsonl{ending}", tmp_path / f"b.txt{ending}"
    lines.write_bytes(PACKERS[ending](b"\n" + json_lines(TEXTS)))
    text.write_bytes(PACKERS[ending](TEXTS[1].encode()))
    reader = DocumentReader()
    assert read(lines, reader) == [text.encode() for text in TEXTS]
    assert reader.digest == hashlib.sha256(lines.read_bytes()).hexdigest()
    assert read(text, reader) == [TEXTS[1].encode()]
    assert not reader.skipped


def test_a_column_of_parquet_comes_back(tmp_path: Path) -> None:
    for kind in (pyarrow.string(), pyarrow.large_string()):
        table = pyarrow.table({"n": list(range(len(TEXTS))), "body": pyarrow.array(TEXTS, kind)})
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        reader = DocumentReader("body")
        assert read(tmp_path / "a.parquet", reader) == [text.encode() for text in TEXTS]
        assert reader.digest == hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()


@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet="aé🙂\n", min_size=1, max_size=600), largest=st.integers(16, 80))
def test_a_large_text_file_is_cut_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, text: str, largest: int
) -> None:
    path = tmp_path_factory.mktemp("large") / "large.txt"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "LARGEST_DOCUMENT", largest)
        reader = DocumentReader()
        pieces = read(path, reader)
    assert b"".join(pieces) == text.encode()
    assert all(0 < len(piece) <= largest and piece.decode() for piece in pieces)
    assert reader.cut_files == (len(text.encode()) > largest)


BAD = {
    "invalid.txt": (b"fine \xff\xfe", r"invalid\.txt is not UTF-8 at byte 5 \(invalid start byte\)", "undecodable"),
    "nul.txt": (b"ab\0c", r"nul\.txt has a NUL character at byte 2", "binary"),
    "broken.jsonl": (json_lines(["a"]) + b"{\n", r"broken\.jsonl, line 2 is no JSON", "no JSON"),
    "invalid.jsonl": (
        json_lines(["a"]) + b'{"text": "\xe9"}',
        r"invalid\.jsonl is not UTF-8 at byte 33",
        "undecodable",
    ),
    "lone.jsonl": (b'{"text": "a\\ud800"}', r"lone\.jsonl, line 1: the text has a lone surrogate", "undecodable"),
    "nul.jsonl": (b'{"text": "a\\u0000"}', r"nul\.jsonl, line 1 has a NUL character at byte 1", "binary"),
    "other.jsonl": (b'{"body": "a"}', r"other\.jsonl, line 1 has no field 'text', but 'body'", "without the field"),
    "number.jsonl": (b'{"text": 3}', r"number\.jsonl, line 1 has int in field 'text'", "without the field"),
    "list.jsonl": (b"[1]", r"list\.jsonl, line 1 holds list, expected an object", "without the field"),
    "short.txt.gz": (gzip.compress(b"a" * 99)[:-9], r"short\.txt\.gz cannot be unpacked .*fetch it again", "damaged"),
    "no.txt.gz": (b"plain text", r"no\.txt\.gz cannot be unpacked", "damaged"),
    "short.jsonl.zst": (packed_zstd(b"a" * 99)[:-4], r"short\.jsonl\.zst cannot be unpacked", "damaged"),
    "no.parquet": (b"plain", r"no\.parquet is no Parquet file", "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_document_is_named_or_counted(tmp_path: Path, name: str) -> None:
    content, message, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message + r".*--skip-invalid"):
        read(tmp_path / name)
    reader = DocumentReader(skip_invalid=True)
    rest = read(tmp_path / name, reader)
    assert rest == ([b"a"] if content.startswith(json_lines(["a"])) else [])
    assert reader.skipped == {reason: 1}


def test_an_invalid_byte_far_inside_is_found_at_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "LARGEST_DOCUMENT", 64)
    (tmp_path / "a.txt").write_bytes(b"line of text\n" * 100 + b"\xff")
    with pytest.raises(InputError, match="at byte 1300 "):
        read(tmp_path / "a.txt")
    reader = DocumentReader(skip_invalid=True)
    assert b"".join(read(tmp_path / "a.txt", reader)) == b"line of text\n" * 96
    assert reader.skipped == {"undecodable": 1}


def test_missing_columns_and_texts_of_parquet_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", None], "n": [1, 2]}), path)
    with pytest.raises(InputError, match=r"a\.parquet has no field 'text', but 'body', 'n'"):
        read(path)
    with pytest.raises(InputError, match="has int64 in field 'n', expected string"):
        read(path, DocumentReader("n"))
    with pytest.raises(InputError, match="row 2 has no text"):
        read(path, DocumentReader("body"))
    reader = DocumentReader("body", skip_invalid=True)
    assert read(path, reader) == [b"a"]
    assert reader.skipped == {"without the field": 1}


def test_a_folders_images_and_empty_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "image.gif").write_bytes(b"GIF\0")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_bytes(b'{"text": ""}\n\n')
    reader = DocumentReader()
    for name in ("image.gif", "empty.txt", "empty.jsonl"):
        assert read(tmp_path / name, reader, named=False) == []
    assert reader.skipped == {"binary": 1, "empty": 2}


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(packed_zstd(b"a"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"a\.txt\.zst is read by pyarrow, .* pip install 'verim\[data\]'"):
        read(tmp_path / "a.txt.zst")
