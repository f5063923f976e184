"""Tokenizers: texts come back, control tokens in a text are text, and what is missing is said."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from verim.data.encoding import END_OF_TEXT, ByteEncoder, LibraryEncoder, open_tokenizer, train_bpe
from verim.errors import CorruptError, InputError

CORPUS = [
    f"The {number}th text, about number {number} and its square {number * number}.".encode() for number in range(300)
]


@pytest.fixture(scope="module")
def trained() -> LibraryEncoder:
    return train_bpe(CORPUS, 400)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text_comes_back_and_its_tokens_say_its_bytes(trained: LibraryEncoder, texts: list[str]) -> None:
    encoded = [(text + END_OF_TEXT + text).encode() for text in texts]
    for encoder in (trained, ByteEncoder()):
        for text, tokens in zip(encoded, encoder.encode(encoded), strict=True):
            assert encoder.separator not in tokens
            assert int(encoder.token_bytes[tokens].sum()) == len(text)
            assert tokens.max() < encoder.vocab
            if encoder is trained:
                assert encoder._library.decode(tokens.tolist(), skip_special_tokens=False).encode() == text
            else:
                assert bytes(tokens.tolist()) == text


def test_training_gives_the_vocabulary_that_was_asked_for(trained: LibraryEncoder) -> None:
    assert trained.vocab == 400
    assert len(trained.token_bytes) == 400
    tokens = sum(len(tokens) for tokens in trained.encode(CORPUS))
    assert tokens < sum(map(len, CORPUS)) / 2.5
    with pytest.raises(
        InputError, match=r"tokenizer: got bpe:9000, but the text gives only \d+ .*ask for at most bpe:"
    ):
        train_bpe(CORPUS, 9000)


def test_a_saved_tokenizer_is_opened_with_its_separator(trained: LibraryEncoder, tmp_path: Path) -> None:
    assert trained.save(tmp_path) == "tokenizer.json"
    for name in (str(tmp_path), str(tmp_path / "tokenizer.json"), f"hf:{tmp_path}"):
        opened = open_tokenizer(name)
        assert (opened.vocab, opened.separator) == (400, trained.separator)
        assert opened.encode(CORPUS[:3])[2].tolist() == trained.encode(CORPUS[:3])[2].tolist()
    letter = open_tokenizer(str(tmp_path), separator="a").separator
    assert letter != trained.separator
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, 8]}')
    assert open_tokenizer(str(tmp_path)).separator == 7
    with pytest.raises(InputError, match=r"separator: '<none>' is no token of"):
        open_tokenizer(str(tmp_path), separator="<none>")


def test_a_tokenizer_without_an_end_must_be_told_one(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    library.save(str(tmp_path / "words.json"))
    with pytest.raises(InputError, match=r"separator: .* has none of the usual tokens that end a text"):
        open_tokenizer(str(tmp_path / "words.json"))
    assert open_tokenizer(str(tmp_path / "words.json"), "b").separator == 1


def test_what_is_no_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"other\.json is no tokenizer that the library tokenizers reads"):
        open_tokenizer(str(tmp_path / "other.json"))
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        open_tokenizer(str(tmp_path))

    def offline(name: str) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(tokenizers.Tokenizer, "from_pretrained", offline, raising=False)
    with pytest.raises(InputError, match=r"hf:some/model cannot be fetched \(no route to host\): check the name"):
        open_tokenizer("hf:some/model")


def test_pieces_with_byte_fallback_say_their_bytes() -> None:
    vocab = {"<unk>": 0, "</s>": 1, "▁a": 2, "a": 3, "▁": 4, "<0xC3>": 5, "<0xA9>": 6}
    library = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    encoder = LibraryEncoder(library, 1)
    (tokens,) = encoder.encode(["a a é".encode()])
    assert tokens.tolist() == [3, 2, 4, 5, 6]
    assert encoder.token_bytes.tolist() == [5, 1, 2, 1, 1, 1, 1]
    assert int(encoder.token_bytes[tokens].sum()) == 6
