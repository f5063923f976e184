"""Requests that go through the model together: those whose prompt is being read, and those that decode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from verim.generate.request import Request
from verim.generate.sampler import Sampler, tokens_seen
from verim.nn import StackState


@dataclass
class Reading:
    """Prompts of equal length, of which the first `read` tokens have gone into `state`."""

    requests: list[Request]
    tokens: Int[Tensor, "rows length"]
    read: int = 0
    state: StackState | None = None

    @classmethod
    def of(cls, requests: list[Request], device: torch.device) -> "Reading":
        return cls(requests, torch.tensor([request.prompt for request in requests], device=device))

    def bytes(self) -> int:
        """Bytes of the states that are held."""
        return 0 if self.state is None else self.state.bytes()

    def where(self, keep: Callable[[Request], bool]) -> "Reading | None":
        """The requests that are to be kept alone; None where there is none."""
        rows = _rows(self.requests, keep, self.tokens.device)
        if rows is None:
            return self
        if not len(rows):
            return None
        state = None if self.state is None else self.state.take(rows)
        return Reading([request for request in self.requests if keep(request)], self.tokens[rows], self.read, state)


@dataclass
class Decoding:
    """Requests that decode: each row's last token, not read yet, and the state before it."""

    requests: list[Request]
    tokens: Int[Tensor, "rows 1"]
    state: StackState
    sampler: Sampler
    vocab: int

    @classmethod
    def of(cls, requests: list[Request], tokens: Int[Tensor, "rows 1"], state: StackState, vocab: int) -> "Decoding":
        return cls(requests, tokens, state, sampler_of(requests, vocab, tokens.device), vocab)

    def bytes(self) -> int:
        """Bytes of the states that are held."""
        return self.state.bytes()

    @classmethod
    def join(cls, parts: Sequence["Decoding"]) -> "Decoding":
        """All requests of `parts` as one batch."""
        return cls.of(
            [request for part in parts for request in part.requests],
            torch.cat([part.tokens for part in parts]),
            StackState.join([part.state for part in parts]),
            parts[0].vocab,
        )

    def where(self, keep: Callable[[Request], bool]) -> "Decoding | None":
        """The requests that are to be kept alone; None where there is none."""
        rows = _rows(self.requests, keep, self.tokens.device)
        if rows is None:
            return self
        if not len(rows):
            return None
        kept = [request for request in self.requests if keep(request)]
        return Decoding.of(kept, self.tokens[rows], self.state.take(rows), self.vocab)


def sampler_of(requests: Sequence[Request], vocab: int, device: torch.device) -> Sampler:
    """Goes on drawing where each request stands."""
    samplings = [request.sampling for request in requests]
    seen = None
    if any(sampling.repetition_penalty != 1 for sampling in samplings):
        seen = tokens_seen([request.prompt + request.tokens for request in requests], vocab, device)
    return Sampler(samplings, [len(request.tokens) for request in requests], seen, device)


def _rows(requests: Sequence[Request], keep: Callable[[Request], bool], device: torch.device) -> Tensor | None:
    """Numbers of the rows that are kept; None where all are."""
    rows = [row for row, request in enumerate(requests) if keep(request)]
    return None if len(rows) == len(requests) else torch.tensor(rows, dtype=torch.int64, device=device)
