"""Batches of consecutive tokens: for training in an order fixed by a seed, for evaluation each byte once."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from verim.data.corpus import SEPARATOR
from verim.data.permutation import fill_starts
from verim.data.stream import TokenStream
from verim.errors import InputError

Batch = tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]
"""Inputs, and as targets the token that follows each."""

_BLOCK_TOKENS, _POOL_TOKENS = 1 << 18, 1 << 28
"""Tokens read side by side, and tokens that are shuffled together."""


class Loader:
    """Training batches as a function of the step: nothing is remembered, so a resumed run sees the same ones.

    An epoch cuts the tokens into windows of `length`, beginning at an offset of its own (0 to length − 1),
    and shows every window once, in an order of its own; both come from (seed, epoch). Batches run on over the
    end of an epoch. Fewer than 2·length tokens at the two ends are not seen in an epoch. Up to 2²⁸ tokens are shuffled
    whole, more in pools of so many from all over the data (see `verim.data.permutation`).

    Whatever the number of ranks, the batch is the same: each takes its rows of it.

    >>> loader = Loader(torch.arange(100, dtype=torch.uint8), batch=2, length=4, seed=0)
    >>> inputs, targets = loader.batch(7)
    >>> inputs.shape, bool((inputs + 1 == targets).all())
    (torch.Size([2, 4]), True)
    """

    def __init__(self, tokens: UInt8[Tensor, " bytes"] | TokenStream, batch: int, length: int, seed: int) -> None:
        if batch < 1 or length < 1:
            raise InputError(f"batch = {batch}, length = {length}: expected both to be at least 1")
        if not 0 <= seed < 2**64:
            raise InputError(f"seed = {seed}: expected at least 0 and less than 2**64")
        self.windows_per_epoch = (len(tokens) - length) // length
        if self.windows_per_epoch < 1:
            raise InputError(
                f"{len(tokens):,} tokens are too few for windows of length = {length}: give at least "
                f"{2 * length:,} tokens, or a smaller length"
            )
        self._tokens = tokens if isinstance(tokens, TokenStream) else TokenStream([tokens.numpy()])
        self._batch, self._length = batch, length
        block = max(1, _BLOCK_TOKENS // length)
        pool = max(1, _POOL_TOKENS // (block * length))
        numbers = self.windows_per_epoch, length, seed, block, pool
        self._order = tuple(map(np.uint64, numbers))

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of `step` (from 0), int64; of several ranks, the rows of one: they follow in the ranks' order.

        Raises `InputError` where the ranks do not divide the batch.
        """
        assert step >= 0, f"a step counts from 0, got {step}"
        if not 0 <= rank < ranks or self._batch % ranks:
            raise InputError(
                f"rank = {rank}, ranks = {ranks}: expected a number of ranks that divides the batch of {self._batch} "
                "rows, and a rank below it"
            )
        rows = self._batch // ranks
        sample = step * self._batch + rank * rows
        starts, end = np.empty(rows, np.int64), sample + rows
        done = 0
        while done < rows:  # once, but where the batch runs on over the end of an epoch
            epoch, place = divmod(sample + done, self.windows_per_epoch)
            here = starts[done : done + min(end - sample - done, self.windows_per_epoch - place)]
            fill_starts(here, np.uint64(place), np.uint64(epoch), *self._order)
            done += len(here)
        return self._tokens.windows(starts, self._length)


def document_numbers(
    inputs: Int64[Tensor, "batch length"], separator: int = SEPARATOR
) -> Int32[Tensor, "batch length"]:
    """To which document of its row each token belongs, counted from 0: `documents` of `verim.ops.attention`.

    A separator, which as a target ends a document, as an input begins the next one: so the first token of a document
    is predicted from a separator alone, as at the very beginning.

    >>> document_numbers(torch.tensor([[5, 6, 0, 7, 0, 8]]))
    tensor([[0, 0, 1, 1, 2, 2]], dtype=torch.int32)
    """
    return (inputs == separator).cumsum(1, dtype=torch.int32)


def evaluation_batches(
    tokens: UInt8[Tensor, " bytes"] | TokenStream,
    batch: int,
    length: int,
    limit: int | None = None,
    separator: int = SEPARATOR,
) -> Iterator[Batch]:
    """Batches that predict every token of `tokens` exactly once, in order, separators included.

    The first token is predicted from a separator put before it, as the first token of any document is. A
    window knows nothing of the one before it. The last batch may have fewer rows, and what does not fill a
    window comes as one shorter row at the end: weigh each batch by its number of targets.

    Where `limit` is smaller than the number of tokens, `limit // length` whole windows (at least one) are
    taken, spread evenly over all of them.
    """
    if batch < 1 or length < 1 or (limit is not None and limit < 1):
        raise InputError(f"batch = {batch}, length = {length}, limit = {limit}: expected each to be at least 1")
    arrays = tokens.arrays if isinstance(tokens, TokenStream) else (tokens.numpy(),)
    stream = TokenStream([np.array([separator], np.int64), *arrays])
    windows = len(tokens) // length
    limited = limit is not None and limit < len(tokens) and windows > 0
    taken = max(1, limit // length) if limited and limit is not None else windows
    starts = np.arange(taken) * windows // max(1, taken) * length
    for first in range(0, taken, batch):
        yield stream.windows(starts[first : first + batch], length)
    rest = len(tokens) - windows * length
    if rest and not limited:
        yield stream.windows(np.array([windows * length]), rest)
