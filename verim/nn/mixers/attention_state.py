"""The keys and values that attention keeps."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.nn.state import State

Heads = Float[Tensor, "batch length kv_heads head_dim"]

_ROOM = 64  # positions that a new buffer has to spare, at least


class _Buffer:
    """Keys and values of a batch with room for later ones. Columns up to `filled` belong to some state."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        self.keys, self.values, self.filled = keys, values, filled


class AttentionState(State):
    """Rotated keys, and values, of the positions so far; with a window of its last window - 1 alone.

    Rows are aligned at the end: where sequences of different length were joined, the first `missing` columns of a
    row hold nothing. Keys and values lie in a buffer with room: appending to the newest state of a buffer writes
    them there, appending to an older one copies, so that no state changes what another one holds.
    """

    def __init__(
        self,
        buffer: _Buffer | Callable[[], _Buffer],
        end: int,
        seen: int,
        window: int,
        missing: Int[Tensor, "batch"] | None = None,
    ) -> None:
        self._buffer: _Buffer | Callable[[], _Buffer] | None = buffer  # None once given up for an earlier state
        self._end, self._window = end, window
        self.seen = seen
        """Positions of the longest row."""
        self.missing = missing
        """How many fewer positions each row has seen; None where all have seen as many."""

    @classmethod
    def begin(cls, keys: Callable[[], Heads], values: Heads, window: int) -> "AttentionState":
        """Of a sequence's first chunk. Its keys are asked for when they are needed: training never does."""
        length = values.shape[1]
        return cls(lambda: _Buffer(keys(), values, length), length, length, window)

    @property
    def buffer(self) -> _Buffer:
        assert self._buffer is not None, "this state was given up for an earlier one: go on from that"
        if not isinstance(self._buffer, _Buffer):
            self._buffer = self._buffer()
        return self._buffer

    @property
    def held(self) -> int:
        """Columns that are kept."""
        return min(self.seen, self._window - 1) if self._window else self.seen

    def tensors(self) -> tuple[Tensor, ...]:
        columns = slice(self._end - self.held, self._end)
        kept = (self.buffer.keys[:, columns], self.buffer.values[:, columns])
        return kept if self.missing is None else (*kept, self.missing)

    def positions(self, length: int) -> Int[Tensor, "batch length"]:
        """Of the `length` positions that come next in each row."""
        assert self.missing is not None, "all rows stand at `seen`"
        following = torch.arange(self.seen, self.seen + length, device=self.missing.device)
        return following - self.missing[:, None]

    def padding(self, columns: int) -> Int[Tensor, "batch"] | None:
        """How many of the last `columns` columns hold nothing, at the beginning of each row; None: all are in use."""
        return None if self.missing is None else self.missing - (self.seen - columns)

    def append(self, keys: Heads, values: Heads) -> tuple["AttentionState", Heads, Heads]:
        """The next state, and all keys and values that the new positions may see: those held, and the new ones."""
        buffer, held, length = self.buffer, self.held, keys.shape[1]
        end = self._end + length
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad or buffer.keys.requires_grad):
            kept = self.tensors()
            buffer = _Buffer(torch.cat([kept[0], keys], dim=1), torch.cat([kept[1], values], dim=1), held + length)
            end = held + length
        else:
            if buffer.filled != self._end or end > buffer.keys.shape[1]:
                buffer, end = self._moved(length), held + length
            buffer.keys[:, end - length : end] = keys
            buffer.values[:, end - length : end] = values
            buffer.filled = end
        columns = slice(end - held - length, end)
        state = AttentionState(buffer, end, self.seen + length, self._window, self.missing)
        return state, buffer.keys[:, columns], buffer.values[:, columns]

    def _moved(self, length: int) -> _Buffer:
        """What is held, at the beginning of a new buffer with room for `length` more and some."""
        room = self.held + length + max(_ROOM, self.held // 2)
        keys, values = (_widened(tensor, room) for tensor in self.tensors()[:2])
        return _Buffer(keys, values, self.held)

    def take(self, rows: Int[Tensor, "rows"]) -> "AttentionState":
        keys, values = self.tensors()[:2]
        seen, missing = self.seen, None
        if self.missing is not None:
            missing = self.missing[rows]
            spare = int(missing.min()) if len(rows) else 0  # columns in which no row holds anything
            seen, missing = seen - spare, missing - spare
            missing = missing if bool(missing.any()) else None
        first = keys.shape[1] - min(seen, keys.shape[1])
        buffer = _Buffer(keys[:, first:].index_select(0, rows), values[:, first:].index_select(0, rows), 0)
        buffer.filled = buffer.keys.shape[1]
        return AttentionState(buffer, buffer.filled, seen, self._window, missing)

    @classmethod
    def join(cls, states: Sequence["AttentionState"]) -> "AttentionState":
        if len(states) == 1:
            return states[0]
        seen, held = max(state.seen for state in states), max(state.held for state in states)
        batch = sum(state.buffer.keys.shape[0] for state in states)
        like = states[0].buffer.keys
        room = held + max(_ROOM, held // 2)
        keys, values = (like.new_zeros(batch, room, *like.shape[2:]) for _ in range(2))
        missing, row = [], 0
        for state in states:
            kept = state.tensors()
            rows = slice(row, row + len(kept[0]))
            keys[rows, held - state.held : held], values[rows, held - state.held : held] = kept[:2]
            own = state.missing if state.missing is not None else torch.zeros(len(kept[0]), dtype=torch.int64)
            missing.append(own.to(like.device) + (seen - state.seen))
            row = rows.stop
        behind = torch.cat(missing)
        ragged = behind if bool(behind.any()) else None
        return cls(_Buffer(keys, values, held), held, seen, states[0]._window, ragged)

    def earlier(self, positions: int) -> "AttentionState | None":
        if positions == 0:
            return self
        buffer, end, seen = self.buffer, self._end - positions, self.seen - positions
        state = AttentionState(buffer, end, seen, self._window, self.missing)
        if end < state.held or seen < 0 or (self.missing is not None and seen < int(self.missing.max())):
            return None
        if buffer.filled == self._end:  # its room is used again, so this state must not be
            buffer.filled = end
            self._buffer = None
        return state


def _widened(tensor: Tensor, room: int) -> Tensor:
    wide = tensor.new_zeros(tensor.shape[0], room, *tensor.shape[2:])
    wide[:, : tensor.shape[1]] = tensor
    return wide
