"""What a stack of shared blocks keeps of sequences whose tokens take different numbers of recursions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from verim.nn.state import StackState, State


@dataclass(frozen=True)
class RecursionState(State):
    """A state of the shared blocks for every recursion, which advances only for the tokens that took it.

    - `before`, `after`: of the blocks that are not shared, in front and behind; all tokens pass them.
    - `rounds`: of the shared blocks at every recursion; None where no token of the batch has come that far, and beyond
      the first where the recursions read what the first one keeps.
    - `taken` [batch, recursions]: how many tokens of each sequence took each recursion.
    - `seen` [batch]: positions of each sequence; `depth` [batch]: recursions that its last token took.
    """

    before: StackState
    rounds: tuple[StackState | None, ...]
    after: StackState
    taken: Int[Tensor, "batch recursions"]
    seen: Int[Tensor, "batch"]
    depth: Int[Tensor, "batch"]

    @property
    def parts(self) -> list[StackState]:
        return [self.before, *(part for part in self.rounds if part is not None), self.after]

    def tensors(self) -> tuple[Tensor, ...]:
        return (*(tensor for part in self.parts for tensor in part.tensors()), self.taken, self.seen, self.depth)

    def bytes(self) -> int:
        counters = (self.taken, self.seen, self.depth)
        return sum(part.bytes() for part in self.parts) + sum(c.numel() * c.element_size() for c in counters)

    def take(self, rows: Int[Tensor, "rows"]) -> "RecursionState":
        return RecursionState(
            self.before.take(rows),
            tuple(None if part is None else part.take(rows) for part in self.rounds),
            self.after.take(rows),
            self.taken[rows],
            self.seen[rows],
            self.depth[rows],
        )

    @classmethod
    def join(cls, states: Sequence["RecursionState"]) -> "RecursionState":
        rounds = [state.begun() for state in states]
        return cls(
            StackState.join([state.before for state in states]),
            tuple(
                None if all(part is None for part in column) else StackState.join([_known(part) for part in column])
                for column in zip(*rounds, strict=True)
            ),
            StackState.join([state.after for state in states]),
            *(torch.cat([getattr(state, name) for state in states]) for name in ("taken", "seen", "depth")),
        )

    def begun(self) -> tuple[StackState | None, ...]:
        """`rounds` where a recursion that no token has come to has a state too: that of having seen nothing."""
        first = self.rounds[0]
        assert first is not None, "every token takes the first recursion"
        batch = len(self.seen)
        return tuple(first.blank(batch) if part is None else part for part in self.rounds)

    def earlier(self, positions: int) -> "RecursionState | None":
        return self if positions == 0 else None

    def with_depth(self, depth: Int[Tensor, "batch"]) -> "RecursionState":
        """The same with other depths of the last tokens."""
        return replace(self, depth=depth)


def _known(part: StackState | None) -> StackState:
    assert part is not None, "begun() leaves none out"
    return part
