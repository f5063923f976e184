"""Recursion: a few blocks that are applied again and again, to every token or to as many as a router sends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.recursion_routing import Depths, ExpertChoiceConfig, TokenChoiceConfig, Tokens
from verim.nn.recursion_state import RecursionState
from verim.nn.state import StackState

Sharing = Literal["cycle", "sequence", "middle_cycle", "middle_sequence"]
Cache = Literal["recursion", "shared"]
ROUTINGS: dict[str, type] = {"expert_choice": ExpertChoiceConfig, "token_choice": TokenChoiceConfig}
"""The kinds of routing, by their name in a configuration."""


@dataclass(frozen=True)
class RecursionConfig:
    """`recursions` N applications of a few shared blocks (Bae et al. 2025, arXiv 2507.10524, table 1 and section 2.2).

    - `sharing`: of L applications in all, "cycle": L / N blocks, one after the other, N times; "sequence": each of
      L / N blocks N times in a row; "middle_cycle", "middle_sequence": the same between a first and a last block of
      their own, (L - 2) / N blocks shared.
    - `routing`: which tokens take another recursion; None: all take all. Only with the cycles, where a recursion is
      one pass of all the shared blocks.
    - `cache`: "recursion": attention of every recursion keeps keys and values of its own, of the tokens that took it:
      (N + 1) / (2N) of the keys and values of L blocks of their own at the capacities N/N ... 1/N.
      "shared": all recursions read those of the first, which all tokens take: 1 / N.
    """

    recursions: int
    sharing: Sharing = "middle_cycle"
    routing: ExpertChoiceConfig | TokenChoiceConfig | None = None
    cache: Cache = "recursion"

    def __post_init__(self) -> None:
        if self.recursions < 1:
            raise InputError(f"recursion.recursions: got {self.recursions}, expected at least 1")
        for name, known in (("sharing", Sharing), ("cache", Cache)):
            if getattr(self, name) not in get_args(known):
                words = ", ".join(get_args(known))
                raise InputError(f"recursion.{name}: got {getattr(self, name)!r}, expected one of {words}")
        if self.routing is not None and self.sharing not in ("cycle", "middle_cycle"):
            raise InputError(
                f"recursion.sharing: got {self.sharing!r} with routing, expected 'cycle' or 'middle_cycle': a token "
                "goes on or leaves after a pass of all shared blocks"
            )
        if self.routing is None and self.cache != "recursion":
            raise InputError(f"recursion.cache: got {self.cache!r} without routing, expected 'recursion'")
        if self.routing is not None:
            self.routing.check(self.recursions)

    @property
    def outer(self) -> int:
        """Blocks in front of the shared ones, and as many behind."""
        return 1 if self.sharing.startswith("middle") else 0

    def unique(self, depth: int) -> int:
        """How many blocks `depth` applications need. Raises `InputError` where they cannot be divided."""
        inner = depth - 2 * self.outer
        if inner < self.recursions or inner % self.recursions:
            least = self.recursions + 2 * self.outer
            before = "2 and " if self.outer else ""
            raise InputError(
                f"depth: got {depth}, expected {before}a multiple of recursions, {self.recursions}, for sharing "
                f"{self.sharing!r}: {least}, {least + self.recursions}, {least + 2 * self.recursions}, ..."
            )
        return inner // self.recursions + 2 * self.outer

    def order(self, depth: int) -> tuple[int, ...]:
        """The number of the block at each of `depth` applications."""
        shared = self.unique(depth) - 2 * self.outer
        blocks = range(self.outer, self.outer + shared)
        if self.sharing.endswith("cycle"):
            inner = [block for _ in range(self.recursions) for block in blocks]
        else:
            inner = [block for block in blocks for _ in range(self.recursions)]
        return (0, *inner, shared + 1) if self.outer else tuple(inner)


class RoutedBlock(Protocol):
    """A block with residual connections past which tokens can be routed."""

    def routed(
        self, x: Float[Tensor, "rows length width"], state: StackState | None, positions: Int[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows length width"], StackState]:
        """The tokens that stood at `positions`, after those that `state` has seen."""
        ...

    def reading(
        self, x: Float[Tensor, "rows length width"], held: StackState, positions: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length width"]:
        """The same, attending to what `held` holds up to `positions`."""
        ...

    def flops(self, length: int) -> float:
        """Forward and backward FLOPs a token, the mean over a sequence of `length`."""
        ...

    def reading_flops(self, length: int) -> float:
        """The same of `reading`."""
        ...

    def state_bytes(self, batch: int, length: int) -> int:
        """Bytes of the state of `batch` sequences after `length` positions."""
        ...


class RoutedStack(nn.Module):
    """Blocks of which those in the middle are applied again to the tokens that a router sends on.

    At a recursion the shared blocks see only the tokens that take it, as if these were the whole sequence (attention
    knows at which positions they stood), and each recursion has a state of its own, which advances for these tokens
    alone: a recurrent mixer at recursion r is a second, third ... memory with the same weights, of the tokens that were
    thought about that long. A token that leaves costs nothing more.

    In evaluation mode routing looks at nothing that comes later, and a sequence in chunks gives what the whole gives.
    In training mode expert choice looks at the whole sequence, and where tokens choose, rows of unequal length are
    padded to the longest: there the stack begins sequences and keeps no state.

    `depths` is what happened in the last call, to watch.
    """

    def __init__(self, config: RecursionConfig, width: int) -> None:
        super().__init__()
        assert config.routing is not None, "without routing the blocks are a plain list"
        self.config = config
        self.router = config.routing.build(width, config.recursions)
        self.depths: Depths | None = None

    def forward(
        self,
        blocks: Sequence[RoutedBlock],
        x: Float[Tensor, "batch length width"],
        state: RecursionState | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], RecursionState | None]:
        """`blocks`: all of them, from the embedding to the head. The state is None in training mode."""
        batch, length, width = x.shape
        device, outer = x.device, self.config.outer
        if state is None:
            seen = torch.zeros(batch, dtype=torch.int64, device=device)
            taken = seen[:, None].expand(batch, self.config.recursions)
        else:
            seen, taken = state.seen, state.taken
        tokens = Tokens(torch.arange(batch * length, device=device), length, seen)
        positions = tokens.positions.view(batch, length)
        shared = blocks[outer : len(blocks) - outer]
        x, before = pass_through(blocks[:outer], x, None if state is None else state.before, positions)
        flow = _Flow(self, shared, [None] * self.config.recursions if state is None else list(state.rounds), taken)
        flat = x.reshape(-1, width)
        flow.decided = self.router.begin(flat)
        depth = torch.zeros(batch * length, dtype=torch.int64, device=device)
        x = flow.recur(0, flat, tokens, depth).view(batch, length, width)
        x, after = pass_through(blocks[len(blocks) - outer :], x, None if state is None else state.after, positions)
        depths = depth.view(batch, length)
        self.depths = Depths(depths, self.config.recursions)
        if self.training:
            return x, None
        more = torch.stack([(depths > r).sum(1) for r in range(self.config.recursions)], dim=1)
        return x, RecursionState(before, tuple(flow.rounds), after, taken + more, seen + length, depths[:, -1])

    def flops(self, blocks: Sequence[RoutedBlock], length: int) -> float:
        """Forward and backward FLOPs a token, the mean over a sequence at the shares of tokens that are trained for."""
        outer = self.config.outer
        ends, shared = [*blocks[:outer], *blocks[len(blocks) - outer :]], blocks[outer : len(blocks) - outer]
        total = sum(block.flops(length) for block in ends)
        for recursion in range(self.config.recursions):
            share = self.router.share(recursion)
            if recursion and self.config.cache == "shared":
                total += share * sum(block.reading_flops(length) for block in shared)
            else:
                total += share * sum(block.flops(max(1, round(share * length))) for block in shared)
        return total

    def state_bytes(self, blocks: Sequence[RoutedBlock], batch: int, length: int) -> int:
        """The most bytes of the state of `batch` sequences after `length` tokens."""
        outer, held = self.config.outer, 8 * batch * (self.config.recursions + 2)
        ends, shared = [*blocks[:outer], *blocks[len(blocks) - outer :]], blocks[outer : len(blocks) - outer]
        held += sum(block.state_bytes(batch, length) for block in ends)
        for recursion in range(1 if self.config.cache == "shared" else self.config.recursions):
            held += sum(block.state_bytes(batch, self.router.most(recursion, length)) for block in shared)
        return held


class _Flow:
    """One call of a stack: the recursions' states while tokens go through them."""

    def __init__(
        self,
        stack: RoutedStack,
        blocks: Sequence[RoutedBlock],
        rounds: list[StackState | None],
        taken: Int[Tensor, "rows recursions"],
    ) -> None:
        self.stack, self.blocks, self.rounds, self.taken = stack, blocks, rounds, taken
        self.decided: Tensor | None = None

    def recur(
        self, recursion: int, x: Float[Tensor, "tokens width"], tokens: Tokens, depth: Int[Tensor, "all"]
    ) -> Float[Tensor, "tokens width"]:
        """What becomes of tokens that took the recursions before this one; notes the depth of those that take it."""
        chosen = self.stack.router.choose(recursion, x, tokens, self.decided, self.taken[:, recursion])
        index = chosen.index
        if index is not None and not len(index):
            return x
        own, tokens = (x if index is None else x.index_select(0, index)), tokens.select(index)
        depth[tokens.place] = recursion + 1
        y = own + chosen.gates * self._apply(recursion, own, tokens)
        if recursion + 1 < self.stack.config.recursions:
            y = self.recur(recursion + 1, y, tokens, depth)
        return y if index is None else x.index_copy(0, index, y)

    def _apply(self, recursion: int, x: Float[Tensor, "tokens width"], tokens: Tokens) -> Float[Tensor, "tokens width"]:
        """The shared blocks on these tokens, rows with equally many of them together."""
        counts = tokens.counts()
        rows, most, state = len(counts), int(counts.max()), self.rounds[recursion]
        if most * rows == len(x):
            y = self._of_rows(recursion, None, x.view(rows, most, -1), tokens.positions.view(rows, most), state)
            return y.flatten(0, 1)
        if self.stack.training:
            return self._padded(recursion, x, tokens, most)
        result = torch.empty_like(x)
        of_tokens = counts[tokens.rows]
        for count in counts.unique().tolist():
            if count:
                index, these = (of_tokens == count).nonzero()[:, 0], (counts == count).nonzero()[:, 0]
                part, positions = x[index].view(len(these), count, -1), tokens.positions[index].view(-1, count)
                y = self._of_rows(recursion, these, part, positions, state).flatten(0, 1)
                result = result.index_copy(0, index, y)
        return result

    def _padded(
        self, recursion: int, x: Float[Tensor, "tokens width"], tokens: Tokens, most: int
    ) -> Float[Tensor, "tokens width"]:
        """All rows at the length of the longest: what stands behind a row's tokens reaches none of them."""
        counts = tokens.counts()
        first = counts.cumsum(0) - counts
        slots = tokens.rows * most + torch.arange(len(x), device=x.device) - first[tokens.rows]
        wide = x.new_zeros(len(counts) * most, x.shape[1]).index_copy(0, slots, x).view(len(counts), most, -1)
        positions = tokens.positions.new_zeros(len(counts) * most).index_copy(0, slots, tokens.positions)
        y = self._of_rows(recursion, None, wide, positions.view(len(counts), most), None)
        return y.flatten(0, 1).index_select(0, slots)

    def _of_rows(
        self,
        recursion: int,
        rows: Int[Tensor, "rows"] | None,
        x: Float[Tensor, "rows length width"],
        positions: Int[Tensor, "rows length"],
        before: StackState | None,
    ) -> Float[Tensor, "rows length width"]:
        """The shared blocks on the tokens of these rows (None: all) at a recursion, whose state was `before`."""
        if recursion and self.stack.config.cache == "shared":
            held = self.rounds[0]
            assert held is not None, "all tokens take the first recursion, before any other"
            return read(self.blocks, x, held if rows is None else held.take(rows), positions)
        own = before if rows is None or before is None else before.take(rows)
        y, new = pass_through(self.blocks, x, own, positions)
        if rows is not None:
            whole = self.rounds[recursion]
            new = (new.blank(len(self.taken)) if whole is None else whole).put(rows, new)
        self.rounds[recursion] = new
        return y


def pass_through(
    blocks: Sequence[RoutedBlock],
    x: Float[Tensor, "rows length width"],
    state: StackState | None,
    positions: Int[Tensor, "rows length"],
) -> tuple[Float[Tensor, "rows length width"], StackState]:
    states = [None] * len(blocks) if state is None else state.layers
    after = []
    for block, before in zip(blocks, states, strict=True):
        x, new = block.routed(x, before, positions)
        after.append(new)
    return x, StackState(after)


def read(
    blocks: Sequence[RoutedBlock],
    x: Float[Tensor, "rows length width"],
    held: StackState,
    positions: Int[Tensor, "rows length"],
) -> Float[Tensor, "rows length width"]:
    """The blocks one after the other, each reading what it keeps itself at the first recursion."""
    for block, own in zip(blocks, held.layers, strict=True):
        x = block.reading(x, own, positions)
    return x
