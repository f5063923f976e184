"""A corpus: nothing lost, nothing held out that is trained on, the same for the same texts."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.data import SEPARATOR, Corpus, load_corpus
from verim.data.split import pieces
from verim.errors import InputError

PARAGRAPH = "Line {}: some text that is not the same twice, é.\n"


def documents_of(tokens: bytes) -> list[bytes]:
    assert tokens.endswith(bytes([SEPARATOR]))
    return tokens[:-1].split(bytes([SEPARATOR]))


def train_and_held_out(corpus: Corpus) -> tuple[list[bytes], list[bytes]]:
    return (
        documents_of(corpus.train.numpy().tobytes()),
        documents_of(corpus.held_out.numpy().tobytes()),
    )


def write_documents(folder: Path, count: int, lines: int = 20) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        "".join(PARAGRAPH.format(f"{document}.{line}") for line in range(lines)).encode() for document in range(count)
    ]
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_bytes(text)
    return texts


def test_every_document_is_on_one_side_whole(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "in", 200)
    corpus = load_corpus([tmp_path / "in"])
    train, held_out = train_and_held_out(corpus)
    assert sorted(train + held_out) == sorted(texts)
    assert (corpus.train_documents, corpus.held_out_documents) == (len(train), len(held_out))
    assert corpus.bytes == sum(map(len, texts))
    assert 0.05 < sum(map(len, held_out)) / corpus.bytes < 0.10
    assert corpus.notes == ()
    assert corpus.name == str(tmp_path / "in")


def test_the_split_and_the_hash_depend_on_content_alone(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "in", 60)
    other = tmp_path / "other"
    for number, text in enumerate(texts):
        (other / str(number % 7)).mkdir(parents=True, exist_ok=True)
        (other / str(number % 7) / f"{97 * number % 61}.md").write_bytes(text)
    first, second = load_corpus([tmp_path / "in"]), load_corpus([other])
    assert first.sha256 == second.sha256
    assert sorted(train_and_held_out(first)[1]) == sorted(train_and_held_out(second)[1])
    (other / "more.txt").write_text("more")
    assert load_corpus([other]).sha256 != first.sha256


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "a", 60)
    write_documents(tmp_path / "b", 60)
    (tmp_path / "b" / "image.gif").write_bytes(b"\0")
    corpus = load_corpus([tmp_path / "a", tmp_path / "b"])
    assert corpus.bytes == sum(map(len, texts))
    assert corpus.duplicates == 60
    assert corpus.skipped == {"binary": 1}
    train, held_out = train_and_held_out(corpus)
    assert not set(train) & set(held_out)


def test_no_document_dominates_the_held_out_part(tmp_path: Path) -> None:
    write_documents(tmp_path, 200)
    for number in range(20):  # some of these come first in the order of hashes
        (tmp_path / f"large {number}").write_text(f"{number} {'large ' * 1200}")
    held_out = train_and_held_out(load_corpus([tmp_path]))[1]
    assert max(map(len, held_out)) < 2000


def test_one_large_file_is_cut_at_paragraphs_and_a_note_says_so(tmp_path: Path) -> None:
    text = "\n".join("".join(PARAGRAPH.format(f"{p}.{line}") for line in range(5)) for p in range(400)).encode()
    (tmp_path / "large.txt").write_bytes(text)
    corpus = load_corpus([tmp_path / "large.txt"])
    train, held_out = train_and_held_out(corpus)
    assert len(held_out) > 4
    assert sum(map(len, train + held_out)) == len(text)
    assert all(piece in text and piece.endswith(b"\n\n") for piece in train[:-1] + held_out[:-1])
    assert 0.04 < len(corpus.held_out) / len(text) < 0.1
    assert "1 whole documents" in corpus.notes[0]
    assert "cut at paragraphs" in corpus.notes[0]


def test_a_giant_beside_small_files_is_never_held_out_whole(tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    giant = "".join(PARAGRAPH.format(f"giant {line}") for line in range(20_000)).encode()
    (tmp_path / "giant").write_bytes(giant)
    corpus = load_corpus([tmp_path])
    assert len(corpus.held_out) / corpus.bytes < 0.1
    assert len(corpus.train) > 0.9 * corpus.bytes


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(alphabet="aé🙂\n", min_size=1, max_size=400), min_size=1, max_size=30),
    st.integers(8, 64),
)
def test_pieces_put_together_are_the_text_and_are_utf8(parts: list[str], largest: int) -> None:
    text = "\n\n".join(parts).encode()
    cuts = list(pieces(text, largest))
    assert b"".join(cuts) == text
    for piece in cuts:
        assert 0 < len(piece) <= largest
        piece.decode()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_any_sizes_give_a_sound_split_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    for number, size in enumerate(sizes):
        line = f"{number} is the number of this text. "
        (folder / str(number)).write_text((line * (size // len(line) + 1))[:size])
    if sum(sizes) < 20_000:  # at least 40 of the smallest pieces fit into more than that
        with suppress(InputError):
            load_corpus([folder])
        return
    corpus = load_corpus([folder])
    train, held_out = train_and_held_out(corpus)
    assert sum(map(len, train + held_out)) == corpus.bytes
    assert not set(train) & set(held_out)
    assert 0.04 <= sum(map(len, held_out)) / corpus.bytes <= 0.09


def test_no_text_is_an_error_that_counts_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0")
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(InputError, match=r"has no text \(1 binary, 1 empty left out\): name"):
        load_corpus([tmp_path])


@pytest.mark.parametrize("text", [b"x", b"tiny corpus\n", b"a" * 100_000])
def test_a_tiny_corpus_is_an_error_that_says_how_much_there_is(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "text").write_bytes(text)
    with pytest.raises(InputError, match=r"bytes of distinct text: too little to hold 7% out"):
        load_corpus([tmp_path])


def test_too_little_text_says_how_many_bytes_are_needed_and_there(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 10)
    with pytest.raises(InputError, match=r"has 190 bytes of distinct text, 5,000 are needed: name more text"):
        load_corpus([tmp_path], least_bytes=5000)


def test_a_studys_own_folder_and_earlier_studies_change_nothing(tmp_path: Path) -> None:
    write_documents(tmp_path, 60)
    before = load_corpus([tmp_path])
    for folder in ("own", "earlier"):
        write_documents(tmp_path / folder, 2, lines=7)
        (tmp_path / folder / "config.json").write_text(folder)
    (tmp_path / "earlier" / "ladder.json").write_text("{}")
    after = load_corpus([tmp_path], exclude=[tmp_path / "own"])
    assert after.sha256 == before.sha256
    assert after.skipped == {"of a study": 4}


@pytest.mark.parametrize("fraction", [0.0, -1.0, 0.5, float("nan")])
def test_a_fraction_that_cannot_work_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="held_out_fraction = "):
        load_corpus(held_out_fraction=fraction)


def test_without_a_path_it_is_the_standard_library() -> None:
    corpus = load_corpus()
    assert corpus.name.startswith("Python 3.")
    assert corpus.name.endswith("standard library")
    assert corpus.held_out_documents > 20
    assert 0.05 < len(corpus.held_out) / corpus.bytes < 0.1
    assert corpus.sha256 == load_corpus().sha256
