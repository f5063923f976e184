"""A data set gives its tokens back, whatever the shards; damage is found by name; bits per byte are exact."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.data import BuildConfig, Dataset, Loader, TokenStream, build, document_numbers
from verim.data.stream import token_type
from verim.errors import CorruptError, InputError


def line(document: int, number: int) -> str:
    return f"Line {number} of document {document}: é, and so on.\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for document in range(80):
        text = "".join(line(document, number) for number in range(document % 7 + 5))
        (folder / f"{document:03d}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose tokens do not say the bytes: it normalises, puts ▁ before, and has unknown characters."""
    file = tmp_path_factory.mktemp("unigram") / "tokenizer.json"
    pieces = [("<unk>", 0.0), ("<eos>", 0.0)] + [
        (piece, -1.0) for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    ]
    library = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    library.normalizer = tokenizers.normalizers.Lowercase()
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.save(str(file))
    return file


@pytest.fixture(scope="module")
def built(source: Path, unigram: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("built")
    build([source], folder / "byte", BuildConfig())
    build([source], folder / "shards", BuildConfig(shard_tokens=700))
    build([source], folder / "bpe", BuildConfig("bpe:300"))
    build([source], folder / "unigram", BuildConfig(str(unigram)))
    return {path.name: path for path in folder.iterdir()}


def test_shards_are_one_sequence(built: dict[str, Path]) -> None:
    one, many = Dataset(built["byte"]).train, Dataset(built["shards"]).train
    assert len(many.arrays) > 5
    assert torch.equal(one.read(0, len(one)), many.read(0, len(many)))
    assert torch.equal(one.read(650, 2900), many.read(650, 2900))
    for number in range(one.documents):
        assert torch.equal(one.document(number)[0], many.document(number)[0])
        assert one.document(number)[1] == many.document(number)[1]
    for bad in (-1, one.documents):
        with pytest.raises(InputError, match=f"document {bad}: expected at least 0 and less than {one.documents}"):
            one.document(bad)


def test_the_loader_of_shards_is_that_of_memory(built: dict[str, Path]) -> None:
    train = Dataset(built["shards"]).train
    in_memory = Loader(train.read(0, len(train)).to(torch.uint8), 6, 97, seed=5)
    mapped = Loader(train, 6, 97, seed=5)
    for step in (0, 1, 40, 10**9):
        whole = mapped.batch(step)
        assert all(torch.equal(one, other) for one, other in zip(whole, in_memory.batch(step), strict=True))
        for ranks in (2, 3, 6):
            parts = [mapped.batch(step, rank, ranks) for rank in range(ranks)]
            assert torch.equal(torch.cat([inputs for inputs, _ in parts]), whole[0])
            assert torch.equal(torch.cat([targets for _, targets in parts]), whole[1])


@pytest.mark.parametrize(("rank", "ranks"), [(0, 4), (2, 2), (-1, 2), (0, 0)])
def test_ranks_that_do_not_divide_the_batch_are_refused(built: dict[str, Path], rank: int, ranks: int) -> None:
    with pytest.raises(InputError, match="a number of ranks that divides the batch of 6 rows"):
        Loader(Dataset(built["byte"]).train, 6, 8, 0).batch(0, rank, ranks)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 30), st.data())
def test_windows_over_any_arrays(sizes: list[int], length: int, data: st.DataObject) -> None:
    whole = np.arange(sum(sizes), dtype=np.uint16)
    stream = TokenStream(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(stream) == len(whole)
    if len(whole) <= length:
        return
    starts = data.draw(st.lists(st.integers(0, len(whole) - length - 1), max_size=9))
    inputs, targets = stream.windows(np.array(starts, np.int64), length)
    assert inputs.tolist() == [list(range(start, start + length)) for start in starts]
    assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize(
    ("vocab", "kind"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_smallest_type_that_holds_the_vocabulary(vocab: int, kind: str) -> None:
    assert token_type(vocab) == kind


def test_a_vocabulary_that_no_type_holds_is_refused() -> None:
    with pytest.raises(InputError, match="vocab: got"):
        token_type(2**32 + 1)


def test_tokens_of_a_trained_tokenizer_say_their_bytes(built: dict[str, Path], source: Path) -> None:
    data = Dataset(built["bpe"])
    assert (data.vocab, data.separator, data.manifest.token_type) == (300, 0, "uint16")
    assert data.tokenizer_file == built["bpe"] / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(data.tokenizer_file))
    texts = {path.read_text(encoding="utf-8") for path in source.iterdir()}
    assert data.token_bytes is not None
    for part in (data.train, data.held_out):
        for number in range(part.documents):
            tokens, size = part.document(number)
            text = library.decode(tokens[:-1].tolist())
            assert text in texts
            assert len(text.encode()) == size == int(data.token_bytes[tokens[:-1]].sum())
            texts.remove(text)
    assert not texts
    assert data.manifest.bytes_per_token > 2


@pytest.mark.parametrize("name", ["byte", "bpe", "unigram", "shards"])
def test_evaluation_counts_the_bytes_of_its_targets(built: dict[str, Path], name: str) -> None:
    """All of the held-out part has as many bytes whatever the tokenizer: its text, and one for each separator."""
    data = Dataset(built[name])
    every = data.held_out.bytes + data.held_out.documents
    assert (data.token_bytes is None) == (name == "unigram")
    whole = data.evaluation(8, 32)
    assert (whole.bytes, whole.tokens) == (every, len(data.held_out))
    assert whole.bytes == Dataset(built["byte"]).evaluation(3, 50).bytes
    assert torch.equal(
        torch.cat([targets.flatten() for _, targets in whole.batches]), data.held_out.read(0, whole.tokens)
    )
    assert (whole.batches[0][0][0, 0], whole.batches[0][0].dtype) == (data.separator, torch.int64)
    part = data.evaluation(8, 32, 200)
    assert part.tokens < len(data.held_out)
    assert sum(targets.numel() for _, targets in part.batches) == part.tokens
    if name != "unigram":
        assert part.tokens == 192
    assert 0.5 < part.bytes / part.tokens / (every / len(data.held_out)) < 2


def test_documents_are_numbered_within_a_row() -> None:
    inputs = torch.tensor([[0, 5, 6, 0, 0, 7], [5, 5, 5, 5, 5, 5]])
    assert document_numbers(inputs).tolist() == [[1, 1, 1, 2, 3, 3], [0] * 6]
    assert document_numbers(inputs, separator=5).tolist() == [[0, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("name", ["train-00000.tokens", "held_out-00000.index", "sources.jsonl", "token_bytes.npy"])
def test_a_changed_file_is_refused_by_name(built: dict[str, Path], tmp_path: Path, name: str) -> None:
    copy = copied(built["byte"], tmp_path)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CorruptError, match=f"{name} is damaged: its content has SHA-256"):
        Dataset(copy)
    Dataset(copy, verify=False)
    if not name.endswith(("npy", "jsonl")):
        (copy / name).write_bytes(content[:-1])
        with pytest.raises(CorruptError, match=rf"{name} has {len(content) - 1:,} bytes, expected {len(content):,}"):
            Dataset(copy, verify=False)
    (copy / name).unlink()
    with pytest.raises(CorruptError, match=f"{name} is missing"):
        Dataset(copy)


def test_a_manifest_that_is_damaged_newer_or_anothers_is_refused(built: dict[str, Path], tmp_path: Path) -> None:
    copy = copied(built["byte"], tmp_path)
    record = json.loads((copy / "manifest.json").read_text())

    def changed(**values: object) -> None:
        (copy / "manifest.json").write_text(json.dumps(record | values))

    changed(content=record["content"] | {"vocab": 300})
    with pytest.raises(CorruptError, match=r"manifest\.json is damaged"):
        Dataset(copy)
    changed(version=2)
    with pytest.raises(InputError, match="has format version 2, this Verim knows up to 1: update Verim"):
        Dataset(copy)
    changed(format="other")
    with pytest.raises(InputError, match="is not of a data set of Verim"):
        Dataset(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(CorruptError, match="not valid JSON"):
        Dataset(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        Dataset(copy)
    with pytest.raises(InputError, match="does not exist"):
        Dataset(copy / "none")


def copied(folder: Path, target: Path) -> Path:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
