"""Tokens as text while they come: whole characters alone, and nothing of a string that ends the text."""

from collections.abc import Sequence
from typing import Protocol

_BROKEN = "\ufffd"  # what stands for bytes that are no character, or not yet one
_LONGEST_BROKEN = 3  # so many bytes of a character may have come without its last
_CONTEXT = 6  # tokens that stay to be decoded with later ones,
_WINDOW, _LONGEST_WINDOW = 24, 192  # once so many are there; the second where they are no text


class Tokenizer(Protocol):
    """Text to token numbers and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token; bytes that are no character decode to U+FFFD.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    >>> ByteTokenizer().decode([110, 195, 169, 255])
    'né\ufffd'
    """

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token if token < 256 else 0xFF for token in tokens).decode(errors="replace")


class TextStream:
    """The text of tokens that come one at a time.

    A character whose bytes have not all come is kept back, and so is what may be the beginning of one of `stop`. All
    pieces together, with `rest()` at the end, are what decoding the tokens at once gives, up to the first string of
    `stop`; then `stopped` is True.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []  # the last ones
        self._given = 0  # characters of their text that were handed on
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be said of the text now that `token` has come; often nothing."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        whole = _whole(text)
        new, self._given = text[self._given : whole], max(self._given, whole)
        if len(self._tokens) > _WINDOW:
            self._forget()
        return self._until_stop(new)

    def rest(self) -> str:
        """What was kept back, when no more tokens come."""
        new = self._tokenizer.decode(self._tokens)[self._given :]
        text = self._until_stop(new) + self._held
        self._tokens, self._given, self._held = [], 0, ""
        return text

    def _forget(self) -> None:
        """Leaves the last tokens alone, cut between characters where there are any."""
        tokens = self._tokens[-_CONTEXT:]
        text = self._tokenizer.decode(tokens)
        if _BROKEN not in text or len(self._tokens) > _LONGEST_WINDOW:
            self._tokens, self._given = tokens, _whole(text)

    def _until_stop(self, new: str) -> str:
        if not self._stop or self.stopped:
            return "" if self.stopped else new
        text = self._held + new
        ends = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        begun = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _whole(text: str) -> int:
    """Characters without those broken ones at the end that may still become one."""
    return len(text) - min(len(text) - len(text.rstrip(_BROKEN)), _LONGEST_BROKEN)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next(size for size in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:size]))
