"""Decoding where tokens take depths of their own: rows at different recursions pass the shared blocks together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verim.generate.request import Event, Request
from verim.models import LanguageModel
from verim.nn import StackState
from verim.nn.recursion import RoutedStack, pass_through, read
from verim.nn.recursion_state import RecursionState

Draw = Callable[[Sequence[Request], Float[Tensor, "rows 1 vocab"], Int[Tensor, "rows"]], list[Event]]
"""Draws the next tokens of some requests from their logits; last the depths that were taken for them."""


@dataclass
class Depthwise:
    """Requests that decode, each in the middle of its token: `hidden` is its state before recursion `recursion`.

    One `tick` applies the shared blocks once to all rows, whatever their recursion (continuous depth-wise batching: Bae
    et al. 2024, arXiv 2410.20672, section 3.8). A row whose token leaves gets its next token in the same tick, so
    that no place in the batch waits for the deepest.

    `lanes` are the states of the shared blocks, row · recursions + recursion; `decided` is what token choice said.
    """

    model: LanguageModel
    requests: list[Request]
    lanes: StackState
    before: StackState
    after: StackState
    taken: Int[Tensor, "rows recursions"]
    seen: Int[Tensor, "rows"]
    hidden: Float[Tensor, "rows width"]
    recursion: Int[Tensor, "rows"]
    gates: Float[Tensor, "rows 1"]
    decided: Tensor | None

    @classmethod
    def of(
        cls, model: LanguageModel, requests: list[Request], tokens: Int[Tensor, "rows"], state: StackState
    ) -> "Depthwise":
        """Requests whose prompts have been read, and their first tokens."""
        held = state.layers[0]
        assert isinstance(held, RecursionState), "a routed model keeps the states of its recursions"
        rows, recursions = len(requests), len(held.rounds)
        if routed(model).config.cache == "shared":
            lanes = StackState.join([part for part in held.rounds if part is not None])
        else:
            by_recursion = StackState.join([part for part in held.begun() if part is not None])
            order = torch.arange(rows * recursions, device=tokens.device).view(recursions, rows).t().flatten()
            lanes = by_recursion.take(order)
        blank = torch.zeros(rows, model.config.width, dtype=model.embedding.weight.dtype, device=tokens.device)
        batch = cls(
            model, requests, lanes, held.before, held.after, held.taken, held.seen - 1, blank,
            torch.zeros_like(held.seen), blank[:, :1], None,
        )  # fmt: skip
        batch._begin(torch.arange(rows, device=tokens.device), tokens)
        return batch

    @classmethod
    def join(cls, parts: Sequence["Depthwise"]) -> "Depthwise":
        """All requests of `parts` as one batch."""
        fields: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in _BY_ROW}
        for name in ("lanes", "before", "after"):
            fields[name] = StackState.join([getattr(part, name) for part in parts])
        decided = [part.decided for part in parts if part.decided is not None]
        fields["decided"] = torch.cat(decided) if decided else None
        return cls(parts[0].model, [request for part in parts for request in part.requests], **fields)

    def where(self, keep: Callable[[Request], bool]) -> "Depthwise | None":
        """The requests that are to be kept alone; None where there is none."""
        kept = [row for row, request in enumerate(self.requests) if keep(request)]
        if len(kept) == len(self.requests):
            return self
        if not kept:
            return None
        rows = torch.tensor(kept, device=self.seen.device)
        tensors = {name: getattr(self, name)[rows] for name in _BY_ROW}
        return Depthwise(
            self.model,
            [self.requests[row] for row in kept],
            self.lanes.take(self._lanes_of(rows)),
            self.before.take(rows),
            self.after.take(rows),
            decided=None if self.decided is None else self.decided[rows],
            **tensors,
        )

    def bytes(self) -> int:
        """Bytes of the states that are held."""
        counters = (self.taken, self.seen, self.recursion)
        return sum(part.bytes() for part in (self.lanes, self.before, self.after)) + sum(
            counter.numel() * counter.element_size() for counter in counters
        )

    def tick(self, draw: Draw) -> list[Event]:
        """One recursion for every row; tokens that leave after it are read out, and their rows begin the next."""
        stack = routed(self.model)
        y = self.hidden + self.gates * self._shared()[:, 0]
        self.taken = self.taken.scatter_add(1, self.recursion[:, None], torch.ones_like(self.recursion)[:, None])
        following = self.recursion + 1
        inside = following.clamp(max=stack.config.recursions - 1)
        passes, self.gates = stack.router.onward(
            y, inside, self.seen + 1, self.taken.gather(1, inside[:, None])[:, 0], self.decided
        )
        leaves = ~passes | (following == stack.config.recursions)
        self.hidden, self.recursion = y, following
        return self._read_out(leaves, draw) if bool(leaves.any()) else []

    def _shared(self) -> Float[Tensor, "rows 1 width"]:
        """The shared blocks on every row at its recursion."""
        stack = routed(self.model)
        blocks = self.model.routed_blocks()[1]
        x, positions = self.hidden[:, None], self.seen[:, None]
        if stack.config.cache == "recursion":
            lanes = torch.arange(len(x), device=x.device) * stack.config.recursions + self.recursion
            y, new = pass_through(blocks, x, self.lanes.take(lanes), positions)
            self.lanes = self.lanes.put(lanes, new)
            return y
        first = (self.recursion == 0).nonzero()[:, 0]
        y = torch.empty_like(x)
        if len(first):
            y[first], new = pass_through(blocks, x[first], self.lanes.take(first), positions[first])
            self.lanes = self.lanes.put(first, new)
        later = self.recursion.nonzero()[:, 0]
        if len(later):
            y[later] = read(blocks, x[later], self.lanes.take(later), positions[later])
        return y

    def _read_out(self, leaves: Bool[Tensor, "rows"], draw: Draw) -> list[Event]:
        rows = leaves.nonzero()[:, 0]
        x, self.after = self._outer(2, self.after, rows, self.hidden[rows][:, None])
        logits = self.model.head(self.model.norm(x))
        requests = [self.requests[row] for row in rows.tolist()]
        events = draw(requests, logits, self.recursion[rows])
        self._begin(rows, torch.tensor([event.token for event in events], device=rows.device))
        return events

    def _begin(self, rows: Int[Tensor, "rows"], tokens: Int[Tensor, "rows"]) -> None:
        """These rows read their next token, up to the first recursion."""
        router = routed(self.model).router
        self.seen = self.seen.index_add(0, rows, torch.ones_like(rows))
        x, self.before = self._outer(0, self.before, rows, self.model.embed(tokens[:, None]))
        x = x[:, 0]
        decided, zeros = router.begin(x), torch.zeros_like(rows)
        if decided is not None:
            self.decided = decided if self.decided is None else self.decided.index_copy(0, rows, decided)
        self.hidden = self.hidden.index_copy(0, rows, x)
        self.recursion = self.recursion.index_copy(0, rows, zeros)
        gates = router.onward(x, zeros, self.seen[rows] + 1, zeros, decided)[1]
        self.gates = self.gates.index_copy(0, rows, gates)

    def _outer(
        self, part: int, state: StackState, rows: Int[Tensor, "rows"], x: Float[Tensor, "rows 1 width"]
    ) -> tuple[Float[Tensor, "rows 1 width"], StackState]:
        """Blocks that are not shared, on some rows."""
        blocks = self.model.routed_blocks()[part]
        if not blocks:
            return x, state
        x, new = pass_through(blocks, x, state.take(rows), self.seen[rows][:, None])
        return x, state.put(rows, new)

    def _lanes_of(self, rows: Int[Tensor, "rows"]) -> Int[Tensor, "lanes"]:
        if routed(self.model).config.cache == "shared":
            return rows
        recursions = routed(self.model).config.recursions
        return (rows[:, None] * recursions + torch.arange(recursions, device=rows.device)).flatten()


_BY_ROW = ("taken", "seen", "hidden", "recursion", "gates")


def routed(model: LanguageModel) -> RoutedStack:
    """The stack of a model whose tokens take depths of their own."""
    assert model.routed is not None, "other models decode a token at a time"
    return model.routed
