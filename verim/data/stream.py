"""Tokens that lie in several arrays, in memory or mapped from files, as one sequence."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from verim.errors import InputError
from verim.ops.compiled import compiled

TYPES: dict[str, type[np.unsignedinteger]] = {"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32}
"""The types of tokens, the smallest first."""


def token_type(vocab: int) -> str:
    """The smallest type that holds `vocab` tokens."""
    for name, kind in TYPES.items():
        if vocab <= np.iinfo(kind).max + 1:
            return name
    raise InputError(f"vocab: got {vocab:,}, expected at most {2**32:,}: larger ones have no type of token")


@compiled
def _copy(source: np.ndarray, starts: np.ndarray, inputs: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> None:
    """For each i, row rows[i] of the inputs is the tokens from starts[i] on, that of the targets those one later."""
    length = inputs.shape[1]
    for index in range(len(rows)):
        row, start = rows[index], starts[index]
        for place in range(length):
            inputs[row, place] = source[start + place]
        for place in range(length):
            targets[row, place] = source[start + place + 1]


class TokenStream:
    """A sequence of tokens in `arrays` (uint8, uint16 or uint32), which are never copied whole."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = tuple(array.view(np.ndarray) for array in arrays)
        self._ends = np.cumsum([len(array) for array in self.arrays], dtype=np.int64)
        self._begins = self._ends - [len(array) for array in self.arrays]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> Int64[Tensor, " tokens"]:
        """The tokens from `start` to before `stop`, copied."""
        assert 0 <= start <= stop <= len(self), f"tokens {start} to {stop} of {len(self)}"
        result = np.empty(stop - start, np.int64)
        first = int(np.searchsorted(self._ends, start, "right"))
        for array, begin, end in zip(self.arrays[first:], self._begins[first:], self._ends[first:], strict=True):
            if begin >= stop:
                break
            here = slice(max(start, begin), min(stop, end))
            result[here.start - start : here.stop - start] = array[here.start - begin : here.stop - begin]
        return torch.from_numpy(result)

    def windows(
        self, starts: Int64[np.ndarray, " rows"], length: int
    ) -> tuple[Int64[Tensor, "rows {length}"], Int64[Tensor, "rows {length}"]]:
        """Windows of `length` tokens from each of `starts` on, and as targets the token that follows each."""
        inputs, targets = (np.empty((len(starts), length), np.int64) for _ in range(2))
        of_shard = np.searchsorted(self._ends, starts, "right")
        whole = starts + length < self._ends[of_shard]
        for shard in set(of_shard[whole].tolist()):
            rows = np.flatnonzero(whole & (of_shard == shard))
            _copy(self.arrays[shard], starts[rows] - self._begins[shard], inputs, targets, rows)
        for row in np.flatnonzero(~whole):  # these run on into the next array
            tokens = self.read(int(starts[row]), int(starts[row]) + length + 1).numpy()
            inputs[row], targets[row] = tokens[:-1], tokens[1:]
        return torch.from_numpy(inputs), torch.from_numpy(targets)
