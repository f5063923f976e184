"""Keys and values in pages: sequences that grow one without the other, as where each token takes a depth of its own."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.nn.state import State
from verim.ops.attention.one_query import PAGE

Heads = Float[Tensor, "rows length kv_heads head_dim"]


class _Pool:
    """Pages of keys and values, and the table of the pages of every lane; both grow by half where they are full."""

    def __init__(self, like: Heads) -> None:
        self.keys, self.values = (like.new_zeros(0, PAGE, *like.shape[2:]) for _ in range(2))
        self.table = torch.zeros(0, 1, dtype=torch.int64, device=like.device)
        self.free_pages: list[int] = []
        self.free_lanes: list[int] = []

    def page(self) -> int:
        if not self.free_pages:
            held = len(self.keys)
            more = max(16, held // 2)
            self.keys, self.values = (
                torch.cat([pages, pages.new_zeros(more, *pages.shape[1:])]) for pages in (self.keys, self.values)
            )
            self.free_pages = list(range(held + more - 1, held - 1, -1))
        return self.free_pages.pop()

    def lane(self) -> int:
        if not self.free_lanes:
            held = len(self.table)
            more = max(8, held // 2)
            self.table = torch.cat([self.table, self.table.new_zeros(more, self.table.shape[1])])
            self.free_lanes = list(range(held + more - 1, held - 1, -1))
        return self.free_lanes.pop()

    def note(self, lane: int, place: int, page: int) -> None:
        """Page number `place` of `lane` is `page`."""
        if place >= self.table.shape[1]:
            self.table = torch.cat([self.table, torch.zeros_like(self.table)], dim=1)
        self.table[lane, place] = page


class _Lane:
    """One sequence's pages, the first `filled` positions of which belong to some state; given back with the last."""

    def __init__(self, pool: _Pool) -> None:
        self.pool, self.number = pool, pool.lane()
        self.pages: list[int] = []
        self.filled = 0

    def reach(self, length: int) -> None:
        """Makes room for `length` positions, all of which belong to a state from now on."""
        while PAGE * len(self.pages) < length:
            self.pages.append(self.pool.page())
            self.pool.note(self.number, len(self.pages) - 1, self.pages[-1])
        self.filled = length

    def copy(self, length: int, pool: _Pool) -> "_Lane":
        """A lane of its own in `pool` with the first `length` positions."""
        lane = _Lane(pool)
        lane.reach(length)
        if lane.pages:
            old = self.pages[: len(lane.pages)]
            pool.keys[lane.pages], pool.values[lane.pages] = self.pool.keys[old], self.pool.values[old]
        return lane

    def __del__(self) -> None:
        self.pool.free_pages += self.pages
        self.pool.free_lanes.append(self.number)


class PagedState(State):
    """Rotated keys, and values, of sequences that have seen different numbers of positions.

    Rows share a pool of pages of 16 positions; a page is taken when a sequence comes to need it and given back when no
    state holds the sequence any more, so that taking and joining rows moves nothing, and what is allocated is what is
    held but for a page a row and the pool's growth by half. Appending to the newest state of a sequence
    writes behind it, appending to an older one copies that sequence. No gradient flows through what is kept.
    """

    def __init__(self, pool: _Pool, lanes: Sequence[_Lane], lengths: Sequence[int]) -> None:
        self._pool: _Pool | None = pool
        self._lanes, self.lengths = list(lanes), list(lengths)
        self._begun: tuple[Callable[[], Heads], Heads] | None = None

    @classmethod
    def begin(cls, keys: Callable[[], Heads], values: Heads) -> "PagedState":
        """Of the first positions of sequences, as many of each. Pages are filled when needed: training never does."""
        state = cls.__new__(cls)
        state._pool, state._lanes, state._begun = None, [], (keys, values)
        state.lengths = [values.shape[1]] * len(values)
        return state

    @property
    def pool(self) -> _Pool:
        if self._pool is None:
            assert self._begun is not None, "a state has pages, or what to fill them with"
            (keys, values), self._begun = self._begun, None
            self._pool = _Pool(values)
            empty = PagedState(self._pool, [_Lane(self._pool) for _ in values], [0] * len(values))
            self._lanes = empty.append(keys(), values)._lanes
        return self._pool

    def whole(self) -> tuple[Heads, Heads, Int[Tensor, "rows"] | None]:
        """Keys and values of all rows, aligned at the end, and how many columns at the start of each hold nothing."""
        if self._begun is not None:
            return self._begun[0](), self._begun[1], None
        longest = max(self.lengths, default=0)
        lengths = self.counts()
        place = torch.arange(longest, device=lengths.device) - (longest - lengths)[:, None]
        slots = self._slots(place.clamp(min=0))
        keys, values = (pages.flatten(0, 1)[slots] for pages in (self.pool.keys, self.pool.values))
        missing = longest - lengths
        return keys, values, missing if min(self.lengths, default=0) < longest else None

    def counts(self) -> Int[Tensor, "rows"]:
        """How many positions each row holds."""
        return torch.tensor(self.lengths, dtype=torch.int64, device=self.pool.keys.device)

    def table(self) -> Int[Tensor, "rows pages"]:
        """The pages of every row, as `verim.ops.paged_attention` reads them."""
        numbers = torch.tensor([lane.number for lane in self._rows()], device=self.pool.keys.device)
        return self.pool.table.index_select(0, numbers)

    def append(self, keys: Heads, values: Heads) -> "PagedState":
        """The state after as many more positions of every row."""
        pool, count = self.pool, keys.shape[1]
        lanes = [
            lane if lane.filled == length else lane.copy(length, pool)
            for lane, length in zip(self._lanes, self.lengths, strict=True)
        ]
        lengths = [length + count for length in self.lengths]
        for lane, length in zip(lanes, lengths, strict=True):
            lane.reach(length)
        state = PagedState(pool, lanes, lengths)
        if count == 1:
            places = [lane.pages[-1] * PAGE + (length - 1) % PAGE for lane, length in zip(lanes, lengths, strict=True)]
            slots = torch.tensor(places, device=keys.device)
        else:
            slots = state._slots(self.counts()[:, None] + torch.arange(count, device=keys.device)).flatten()
        for pages, new in ((pool.keys, keys), (pool.values, values)):
            pages.view(-1, *pages.shape[2:]).index_copy_(0, slots, new.detach().flatten(0, 1))
        return state

    def _rows(self) -> list[_Lane]:
        return self._lanes if self.pool else []

    def _slots(self, places: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
        """Where the positions with these numbers lie among all of the pool's."""
        return self.table().gather(1, places // PAGE) * PAGE + places % PAGE

    def tensors(self) -> tuple[Tensor, ...]:
        keys, values, missing = self.whole()
        return (keys, values) if missing is None else (keys, values, missing)

    def bytes(self) -> int:
        """Of the keys and values; lists of pages, a 128th of them at most, are not counted."""
        keys = self.pool.keys
        return 2 * sum(self.lengths) * keys[0, 0].numel() * keys.element_size()

    def take(self, rows: Int[Tensor, "rows"]) -> "PagedState":
        numbers = rows.tolist()
        pool = self.pool
        if len(set(numbers)) == len(numbers):
            return PagedState(pool, [self._lanes[n] for n in numbers], [self.lengths[n] for n in numbers])
        copies = [self._lanes[n].copy(self.lengths[n], pool) for n in numbers]
        return PagedState(pool, copies, [self.lengths[n] for n in numbers])

    @classmethod
    def join(cls, states: Sequence["PagedState"]) -> "PagedState":
        pool = max((state.pool for state in states), key=lambda pool: len(pool.keys))
        lanes = [
            lane if lane.pool is pool else lane.copy(length, pool)
            for state in states
            for lane, length in zip(state._rows(), state.lengths, strict=True)
        ]
        return cls(pool, lanes, [length for state in states for length in state.lengths])

    def put(self, rows: Int[Tensor, "rows"], part: "PagedState") -> "PagedState":
        pool, lanes, lengths = self.pool, list(self._rows()), list(self.lengths)
        for row, lane, length in zip(rows.tolist(), part._rows(), part.lengths, strict=True):
            lanes[row] = lane if lane.pool is pool else lane.copy(length, pool)
            lengths[row] = length
        return PagedState(pool, lanes, lengths)

    def blank(self, count: int) -> "PagedState":
        pool = self.pool
        return PagedState(pool, [_Lane(pool) for _ in range(count)], [0] * count)

    def earlier(self, positions: int) -> "PagedState | None":
        return self if positions == 0 else None
