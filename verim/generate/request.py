"""A request while it is answered, and what is told of it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from verim.errors import InputError
from verim.generate.sampling import Sampling
from verim.generate.text import TextStream, Tokenizer

Finish = Literal["", "stop", "length"]


class Event(NamedTuple):
    """A token of a request has been drawn.

    `text` is what can be said of its text now (see `TextStream`), empty without a tokenizer; `finish` is why it was
    the last one ("stop": a stop token or string, "length": `max_tokens`), or empty. A stop token is told, its text not.
    `depth`: recursions that were taken to predict it, 0 where all tokens take as many.
    """

    request: int
    token: int
    text: str
    finish: Finish
    depth: int = 0


class Completion(NamedTuple):
    """All of a request: its tokens (a stop token included), their text up to where it stopped, and why it ended.

    `depths`: recursions that were taken to predict each token; none where all take as many.
    """

    tokens: list[int]
    text: str
    finish: Finish
    depths: tuple[int, ...] = ()


class Request:
    """A prompt, what is asked of it, and the tokens drawn so far."""

    def __init__(self, number: int, prompt: Sequence[int], sampling: Sampling, tokenizer: Tokenizer | None) -> None:
        if sampling.stop and tokenizer is None:
            raise InputError(f"stop: got {sampling.stop!r} without a tokenizer; pass one, or use stop_tokens")
        self.number, self.prompt, self.sampling = number, list(prompt), sampling
        self.tokens: list[int] = []
        self.finished = False
        self._text = TextStream(tokenizer, sampling.stop) if tokenizer is not None else None
        self._stop_tokens = frozenset(sampling.stop_tokens)

    @property
    def longest(self) -> int:
        """Positions that its state may come to: the last token is not read any more."""
        return len(self.prompt) + self.sampling.max_tokens - 1

    def described(self) -> str:
        """Where it stands, for a message."""
        return f"prompt {self.number}, after its {len(self.prompt)} tokens and {len(self.tokens)} drawn ones"

    def take(self, token: int) -> Event:
        """Adds a token that was drawn."""
        self.tokens.append(token)
        finish: Finish = "length" if len(self.tokens) == self.sampling.max_tokens else ""
        text = ""
        if token in self._stop_tokens:
            finish = "stop"
        elif self._text is not None:
            text = self._text.add(token)
        if self._text is not None:
            if finish and not self._text.stopped:
                text += self._text.rest()
            if self._text.stopped:
                finish = "stop"
        self.finished = finish != ""
        return Event(self.number, token, text, finish)
