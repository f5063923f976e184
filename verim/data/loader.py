"""Batches of consecutive tokens: for training in an order fixed by a seed, for evaluation each byte once."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from verim.data.corpus import SEPARATOR
from verim.errors import InputError

Batch = tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]
"""Inputs, and as targets the token that follows each."""


class Loader:
    """Training batches as a function of the step: nothing is remembered, so a resumed run sees the same ones.

    An epoch cuts the tokens into windows of `length`, beginning at an offset of its own (0 to length − 1),
    and shows every window once, in an order of its own; both come from (seed, epoch). Batches run on over the
    end of an epoch. Fewer than 2·length tokens at the two ends are not seen in an epoch.

    >>> loader = Loader(torch.arange(100, dtype=torch.uint8), batch=2, length=4, seed=0)
    >>> inputs, targets = loader.batch(7)
    >>> inputs.shape, bool((inputs + 1 == targets).all())
    (torch.Size([2, 4]), True)
    """

    def __init__(self, tokens: UInt8[Tensor, " bytes"], batch: int, length: int, seed: int) -> None:
        if batch < 1 or length < 1:
            raise InputError(f"batch = {batch}, length = {length}: expected both to be at least 1")
        self.windows_per_epoch = (len(tokens) - length) // length
        if self.windows_per_epoch < 1:
            raise InputError(
                f"{len(tokens):,} tokens are too few for windows of length = {length}: give at least "
                f"{2 * length:,} tokens, or a smaller length"
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(tokens.numpy(), length + 1)  # no copy
        self._batch, self._length, self._seed = batch, length, seed
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of `step` (from 0), int64. Costs some tens of µs; a new epoch adds its permutation."""
        assert step >= 0, f"a step counts from 0, got {step}"
        starts = []
        sample, end = step * self._batch, (step + 1) * self._batch
        while sample < end:  # once, but where the batch runs on over the end of an epoch
            epoch, place = divmod(sample, self.windows_per_epoch)
            offset, order = self._epoch(epoch)
            here = order[place : place + end - sample]
            starts.append(offset + here * self._length)
            sample += len(here)
        rows = self._windows[np.concatenate(starts)]
        return (
            torch.from_numpy(rows[:, :-1].astype(np.int64)),
            torch.from_numpy(rows[:, 1:].astype(np.int64)),
        )

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """The offset of the epoch's first window and the order of its windows. The last two are kept."""
        if epoch not in self._epochs:
            random = np.random.default_rng([self._seed, epoch])
            drawn = int(random.integers(self._length)), random.permutation(self.windows_per_epoch)
            self._epochs = {kept: held for kept, held in self._epochs.items() if kept == epoch - 1}
            self._epochs[epoch] = drawn
        return self._epochs[epoch]


def evaluation_batches(
    tokens: UInt8[Tensor, " bytes"], batch: int, length: int, limit: int | None = None
) -> Iterator[Batch]:
    """Batches that predict every token of `tokens` exactly once, in order, separators included.

    The first token is predicted from a separator put before it, as the first byte of any document is. A
    window knows nothing of the one before it. The last batch may have fewer rows, and what does not fill a
    window comes as one shorter row at the end: weigh each batch by its number of targets.

    Where `limit` is smaller than the number of tokens, `limit // length` whole windows (at least one) are
    taken, spread evenly over all of them.
    """
    if batch < 1 or length < 1 or (limit is not None and limit < 1):
        raise InputError(f"batch = {batch}, length = {length}, limit = {limit}: expected each to be at least 1")
    stream = torch.cat([torch.tensor([SEPARATOR], dtype=torch.uint8), tokens])
    windows = len(tokens) // length
    limited = limit is not None and limit < len(tokens) and windows > 0
    taken = max(1, limit // length) if limited and limit is not None else windows
    starts = torch.arange(taken) * windows // max(1, taken) * length
    for rows in starts.split(batch) if taken else ():
        places = rows[:, None] + torch.arange(length)
        yield stream[places].long(), stream[places + 1].long()
    rest = len(tokens) - windows * length
    if rest and not limited:
        yield stream[-rest - 1 : -1].long()[None], stream[-rest:].long()[None]
