"""Text to tokens: the bytes themselves, or a tokenizer of the library `tokenizers`, trained here or given."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from jaxtyping import Int64
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from verim.data.corpus import SEPARATOR, VOCABULARY
from verim.data.files import printable
from verim.errors import CorruptError, InputError
from verim.models.interop.tokenizer import TOKENIZER, read_end_tokens, read_tokenizer

END_OF_TEXT = "<|endoftext|>"
"""The separator of a tokenizer that is trained here."""

_LEAST_BPE, _LARGEST_BPE = VOCABULARY + 1, 1 << 20
_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "<eos>", "</s>", "[SEP]")


class Encoder(Protocol):
    """Documents to tokens. `separator` is the token after each document, which no document's text gives.

    `token_bytes` says how many bytes of text each token of the vocabulary stands for (the separator for one), as far
    as a token says that: whoever relies on it compares its sums with the documents' bytes. `vocab` is one more than the
    largest token.
    """

    vocab: int
    separator: int

    @property
    def token_bytes(self) -> Int64[np.ndarray, " vocab"]: ...

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The tokens of each of the texts, which are UTF-8, without separators."""
        ...

    def save(self, folder: Path) -> str | None:
        """Writes the tokenizer into `folder`; the file's name, None where there is nothing to write."""
        ...


class ByteEncoder:
    """Every byte is a token; NUL, which no document holds, separates them."""

    vocab, separator = VOCABULARY, SEPARATOR

    @property
    def token_bytes(self) -> Int64[np.ndarray, " vocab"]:
        return np.ones(VOCABULARY, np.int64)

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(text, np.uint8) for text in texts]

    def save(self, folder: Path) -> str | None:
        return None


class LibraryEncoder:
    """A tokenizer of the library `tokenizers`. What looks like a control token in a text is text."""

    def __init__(self, library: tokenizers.Tokenizer, separator: int) -> None:
        self._library = library
        self._library.encode_special_tokens = True
        self._library.no_truncation()
        self._library.no_padding()
        self.separator = separator
        self.vocab = max(library.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def token_bytes(self) -> Int64[np.ndarray, " vocab"]:
        """Of byte-level tokenizers exact; of others a guess: ▁ stands for a space, <0xE2> for a byte."""
        by_bytes = isinstance(self._library.decoder, ByteLevelDecoder)
        added = {token.content for token in self._library.get_added_tokens_decoder().values()}
        result = np.zeros(self.vocab, np.int64)
        for text, token in self._library.get_vocab(with_added_tokens=True).items():
            if by_bytes and text not in added:
                result[token] = len(text)  # a character of the byte-level alphabet for each byte
            elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                result[token] = 1
            else:
                result[token] = len(text.replace("▁", " ").encode())
        result[self.separator] = 1
        return result

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        encoded = self._library.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encoded]

    def save(self, folder: Path) -> str | None:
        self._library.save(str(folder / TOKENIZER))
        return TOKENIZER


def check_tokenizer(name: str) -> None:
    """Raises `InputError` where `name` is no tokenizer: before hours of reading."""
    if name == "byte":
        return
    kind, colon, value = name.partition(":")
    if kind == "bpe" and colon:
        if not value.isdecimal() or not _LEAST_BPE <= int(value) <= _LARGEST_BPE:
            raise InputError(
                f"tokenizer: got {name!r}, expected bpe:VOCAB with a vocabulary from {_LEAST_BPE} (all bytes and the "
                f"separator) to {_LARGEST_BPE:,} tokens"
            )
    elif not (kind == "hf" and value) and not Path(name).exists():
        raise InputError(
            f"tokenizer: got {printable(name)!r}, expected byte, bpe:VOCAB, hf:NAME, or a tokenizer.json (a "
            "folder with one) that exists"
        )


def train_bpe(texts: Iterable[bytes], vocab: int) -> LibraryEncoder:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; on bytes as Radford et al. 2019) of
    `vocab` tokens, the separator among them as token 0.

    Words are split as GPT-2 splits them. Raises `InputError` where the texts have too few pairs for that many tokens.
    """
    library = tokenizers.Tokenizer(BPE())
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    library.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    library.train_from_iterator((text.decode() for text in texts), trainer)
    if library.get_vocab_size() < vocab:
        raise InputError(
            f"tokenizer: got bpe:{vocab}, but the text gives only {library.get_vocab_size():,} tokens that occur "
            f"twice: ask for at most bpe:{library.get_vocab_size()}, or give more text"
        )
    separator = library.token_to_id(END_OF_TEXT)
    assert separator is not None, "the trainer puts its special tokens in"
    return LibraryEncoder(library, separator)


def open_tokenizer(name: str, separator: str | None = None) -> LibraryEncoder:
    """The tokenizer in the file or folder `name`, or of the model that `hf:NAME` names.

    `separator` is the token after each document; None takes the one that the checkpoint beside it says ends a text, or
    one of the usual names. Raises `InputError` where either is not to be had.
    """
    ends: tuple[int, ...] = ()
    if name.startswith("hf:") and not Path(name[3:]).exists():
        library = _download(name[3:])
    else:
        path = Path(name.removeprefix("hf:"))
        folder = path if path.is_dir() else path.parent
        library = read_tokenizer(folder).library if path.is_dir() or path.name == TOKENIZER else _from_file(path)
        ends = read_end_tokens(folder)
    if separator is not None:
        token = library.token_to_id(separator)
        if token is None:
            raise InputError(f"separator: {separator!r} is no token of {name}: name one of its control tokens")
        return LibraryEncoder(library, token)
    known = [library.token_to_id(text) for text in _END_TOKENS]
    found = [token for token in (*ends, *known) if token is not None]
    if not found:
        raise InputError(
            f"separator: {name} has none of the usual tokens that end a text ({', '.join(_END_TOKENS)}): name the one "
            "that is to stand between documents"
        )
    return LibraryEncoder(library, found[0])


def _from_file(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CorruptError(f"{printable(path)} is no tokenizer that the library tokenizers reads ({error})") from error


def _download(name: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_pretrained(name)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"tokenizer: hf:{name} cannot be fetched ({reason}): check the name and the network, or name a "
            "tokenizer.json"
        ) from error
