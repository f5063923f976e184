"""Selective copying: pick the data out of the noise and say it again in order."""

from dataclasses import dataclass, replace

import numpy as np

from verim.data.synthetic.task import IGNORED, Batch, as_batch, check, distinct, random_numbers


@dataclass(frozen=True)
class SelectiveCopying:
    """`memorised` data tokens stand at random places among noise; behind them come as many markers.

        tokens   · · 5 · 2 · · 5 · 7 | M M M M        (· is noise, 0; M the marker, vocab - 1)
        targets  - - - - - - - - - -   5 2 5 7

    Data tokens are drawn from 1 ... vocab - 2, independently; every choice of places is equally likely. Where the
    data stand changes from sequence to sequence, so a filter that does not depend on the content cannot do it.

    Gu & Dao 2023 (arXiv 2312.00752, section 4.1.1 and appendix E.1, figure 2): length 4096, 16 memorised, vocab 16
    with the noise. The paper draws the answers as blanks; the marker that calls for one is the convention of its
    reproductions, as is one less data token for it. Here `length` counts the markers, too.

    >>> tokens, targets = SelectiveCopying(length=12, memorised=3).batch(1, seed=0, step=0)
    >>> tokens.tolist(), targets[0, -3:].tolist()
    ([[0, 0, 0, 0, 0, 1, 0, 8, 13, 15, 15, 15]], [1, 8, 13])
    """

    length: int = 4096
    memorised: int = 16
    vocab: int = 16

    def __post_init__(self) -> None:
        check(self.memorised >= 1, "memorised", self.memorised, "at least 1")
        check(self.length >= 2 * self.memorised, "length", self.length, "twice memorised or more: data, then markers")
        check(self.vocab >= 4, "vocab", self.vocab, "at least 4: noise, a marker and two data tokens")

    @property
    def chance(self) -> float:
        """Of a random one of the data shown: it is the asked one, or another that happens to be the same."""
        return 1 / self.memorised + (1 - 1 / self.memorised) / (self.vocab - 2)

    def batch(self, batch: int, seed: int, step: int, held_out: bool = False) -> Batch:
        random = random_numbers(seed, step, held_out)
        context = self.length - self.memorised
        data = random.integers(1, self.vocab - 1, (batch, self.memorised))
        places = np.sort(distinct(random, batch, context, self.memorised), axis=1)
        tokens = np.zeros((batch, self.length), dtype=np.int64)
        np.put_along_axis(tokens, places, data, axis=1)
        tokens[:, context:] = self.vocab - 1
        targets = np.full_like(tokens, IGNORED)
        targets[:, context:] = data
        return as_batch(tokens, targets)

    def at_length(self, length: int) -> "SelectiveCopying":
        return replace(self, length=length)
