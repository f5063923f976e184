"""Continuous batching: requests join and leave the batch that decodes, whatever the architecture."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.errors import InputError
from verim.generate.batch import Decoding, Reading, sampler_of
from verim.generate.checks import check_prompt, fitting, warn_of_context, warn_of_windows
from verim.generate.depthwise import Depthwise
from verim.generate.diagnosis import require_finite
from verim.generate.request import Event, Request
from verim.generate.sampler import Sampler
from verim.generate.sampling import Sampling
from verim.generate.text import Tokenizer
from verim.models import LanguageModel
from verim.nn import StackState

_ALIGNMENT_BYTES = 8  # of a row in a layer, at most: where its sequence begins


@dataclass(frozen=True)
class Limits:
    """What an engine may use: requests that do not fit wait.

    - `rows`: requests at once.
    - `state_bytes`: bytes that the states of all of them may come to before they end (`model.state_bytes`); 0: any.
      The room that attention has to spare for its next keys and values, up to half as much again, is not counted.
    - `prefill`: tokens of prompts that are read in a step: those that decode wait for no more.
    """

    rows: int = 16
    state_bytes: int = 0
    prefill: int = 512

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("state_bytes", 0), ("prefill", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")


class Engine:
    """Answers requests that may come at any time; each `step` gives every one that decodes a token.

    The next prompt, with others of its length that fit beside it, is read in chunks of at most `limits.prefill` tokens
    a step; then its rows join those that decode (Orca: Yu et al. 2022, section 3; chunks: Agrawal et al. 2023,
    arXiv 2308.16369, section 4). A row that ends leaves. A request is admitted when the states of all admitted ones
    cannot exceed the limit even if each takes all its tokens, so that none has to be thrown out later.

    Where tokens take depths of their own, a step is one recursion for all that decode (`Depthwise`): those whose token
    leaves get it then.

    The model is put into evaluation mode and must not be changed meanwhile.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer | None = None, limits: Limits | None = None) -> None:
        self.model, self.tokenizer, self.limits = model.eval(), tokenizer, limits or Limits()
        self._device, self._vocab = model.embedding.weight.device, model.config.vocab
        self._waiting: deque[Request] = deque()
        self._reading: Reading | None = None
        self._decoding: Decoding | Depthwise | None = None
        self._layers = sum(1 for _ in model.layers())
        self._numbers = 0
        self._warned = False
        warn_of_windows(model.config)

    def add(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queues a request; returns the number by which events name it.

        Raises `InputError` for an empty prompt, a token outside the vocabulary, a stop string without a tokenizer, and
        a request that does not fit into the limit by itself. Warns, once, of one that is longer than the training was.
        """
        number = self._numbers
        check_prompt(prompt, self._vocab, f"prompt {number}")
        request = Request(number, prompt, sampling, self.tokenizer)
        if not self._fit([request]):
            raise InputError(
                f"prompt {number}: its {len(prompt)} tokens and max_tokens {sampling.max_tokens} need "
                f"{self.model.state_bytes(1, request.longest)} bytes of state, the limit is {self.limits.state_bytes}: "
                f"{fitting(self.model, self.limits.state_bytes)}"
            )
        self._warned = self._warned or warn_of_context(self.model.config, len(prompt), sampling.max_tokens)
        self._numbers += 1
        self._waiting.append(request)
        return number

    def cancel(self, number: int) -> None:
        """Drops a request, waiting or running: nothing more is told of it."""

        def other(request: Request) -> bool:
            return request.number != number

        self._waiting = deque(filter(other, self._waiting))
        self._reading = self._reading and self._reading.where(other)
        self._decoding = self._decoding and self._decoding.where(other)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._admitted)

    @property
    def running(self) -> list[int]:
        """Numbers of the requests that have been admitted and have not ended."""
        return [request.number for request in self._admitted]

    def state_bytes(self) -> int:
        """Bytes of the states that are held now."""
        return sum(part.bytes() for part in (self._reading, self._decoding) if part is not None)

    def events(self) -> Iterator[Event]:
        """Steps until nothing is left to do."""
        while self.busy:
            yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Event]:
        """A token for every request that decodes, then up to `limits.prefill` tokens of prompts are read."""
        events = self._decode(self._decoding) if self._decoding else []
        budget = self.limits.prefill
        while budget > 0:
            self._reading = self._reading or self._next_prompts()
            if self._reading is None:
                break
            budget -= self._read(self._reading, budget, events)
        return events

    def _decode(self, batch: Decoding | Depthwise) -> list[Event]:
        if isinstance(batch, Depthwise):
            events = batch.tick(self._draw_depths)
            if any(event.finish for event in events):
                self._decoding = batch.where(_goes_on)
            return events
        logits, state = self.model(batch.tokens, batch.state)
        drawn, events = self._draw(batch.requests, batch.sampler, logits, batch.tokens, batch.state)
        batch.tokens, batch.state = drawn[:, None], state
        if any(event.finish for event in events):
            self._decoding = batch.where(_goes_on)
        return events

    def _read(self, batch: Reading, budget: int, events: list[Event]) -> int:
        """Reads a chunk, and adds the first tokens where it is the last one. Returns how many tokens were read."""
        rows, length = batch.tokens.shape
        chunk, before = batch.tokens[:, batch.read : batch.read + max(1, budget // rows)], batch.state
        logits, state = self.model(chunk, before, last=1)
        batch.state, batch.read = state, batch.read + chunk.shape[1]
        if batch.read == length:
            sampler = sampler_of(batch.requests, self._vocab, self._device)
            drawn, first = self._draw(batch.requests, sampler, logits, chunk, before)
            depths = [0] * rows if self.model.routed is None else state.layers[0].depth.tolist()
            events += [event._replace(depth=depth) for event, depth in zip(first, depths, strict=True)]
            self._reading = None
            new = Decoding(batch.requests, drawn[:, None], state, sampler, self._vocab).where(_goes_on)
            if new is not None:
                self._go_on(new)
        return chunk.numel()

    def _go_on(self, new: Decoding) -> None:
        """Adds requests whose prompt has been read to those that decode."""
        if self.model.routed is not None:
            one = Depthwise.of(self.model, new.requests, new.tokens[:, 0], new.state)
            self._decoding = Depthwise.join([self._decoding, one]) if isinstance(self._decoding, Depthwise) else one
        else:
            self._decoding = Decoding.join([self._decoding, new]) if isinstance(self._decoding, Decoding) else new

    def _draw_depths(
        self, requests: Sequence[Request], logits: Float[Tensor, "rows 1 vocab"], depths: Int[Tensor, "rows"]
    ) -> list[Event]:
        """The next tokens of requests that took `depths` recursions for them."""
        read = torch.tensor([[(request.prompt + request.tokens)[-1]] for request in requests], device=self._device)
        sampler = sampler_of(requests, self._vocab, self._device)
        events = self._draw(requests, sampler, logits, read, None)[1]
        return [event._replace(depth=depth) for event, depth in zip(events, depths.tolist(), strict=True)]

    def _draw(
        self,
        requests: Sequence[Request],
        sampler: Sampler,
        logits: Float[Tensor, "rows 1 vocab"],
        read: Int[Tensor, "rows length"],
        state: StackState | None,
    ) -> tuple[Int[Tensor, "rows"], list[Event]]:
        """The next token of each request; `read` and the `state` before it say where the logits are from."""
        require_finite(logits, self.model, read, state, lambda row: requests[row].described())
        tokens = sampler.draw(logits[:, -1])
        return tokens, [request.take(token) for request, token in zip(requests, tokens.tolist(), strict=True)]

    def _next_prompts(self) -> Reading | None:
        """The first that waits, if it fits, and others of its length that fit beside it and into one chunk."""
        chosen: list[Request] = []
        for request in self._waiting:
            if chosen and len(request.prompt) != len(chosen[0].prompt):
                continue
            if not self._fit([*self._admitted, *chosen, request]):
                break
            chosen.append(request)
            if (len(chosen) + 1) * len(request.prompt) > self.limits.prefill:
                break
        if not chosen:
            return None
        self._waiting = deque(request for request in self._waiting if request not in chosen)
        return Reading.of(chosen, self._device)

    @property
    def _admitted(self) -> list[Request]:
        return [request for part in (self._decoding, self._reading) if part is not None for request in part.requests]

    def _fit(self, requests: Sequence[Request]) -> bool:
        """Whether these may run at once: rows of a batch take the place of the longest (see `AttentionState`)."""
        if len(requests) > self.limits.rows:
            return False
        if not self.limits.state_bytes:
            return True
        longest = max(request.longest for request in requests)
        aligned = _ALIGNMENT_BYTES * len(requests) * self._layers if len(requests) > 1 else 0
        return self.model.state_bytes(len(requests), longest) + aligned <= self.limits.state_bytes


def _goes_on(request: Request) -> bool:
    return not request.finished
