"""Associative recall with many queries (MQAR): keep keys with their values, give the value of any key."""

from dataclasses import dataclass, replace

import numpy as np

from verim.data.synthetic.task import IGNORED, Batch, as_batch, check, distinct, random_numbers


@dataclass(frozen=True)
class AssociativeRecall:
    """`pairs` keys, each followed by its value; behind them every key once more, at some distance.

        tokens   2 8 4 7 | 0 4 0 0 0 2 0 0 0 0        (keys 2 and 4, values 8 and 7, filler 0)
        targets  - - - -   - 7 - - - 8 - - - -        (the value of the key at this position)

    Keys are drawn from 1 ... vocab / 2 - 1 and values from vocab / 2 ... vocab - 1, each without repetition within a
    sequence. Queries stand at even distances 2 g from the end of the pairs, g = 0 ... (length - 2 pairs) / 2 - 1: key
    by key in the order of the pairs a g that is still free is drawn with probability ∝ (g + 1)^(power - 1). That
    imitates how far apart repeated word pairs stand in text; with `power` 1 all g are equally likely. The positions
    between hold 0, or with `random_filler` any token, drawn uniformly: there is nothing to answer at those.

    Arora et al. 2023 ("Zoology", arXiv 2312.04927, section 4 and figure 2; the draw is that of the authors' code):
    vocab 8192, (length, pairs) from (64, 4) to (512, 64), power 0.01; the filler is 0 for that figure and any token in
    the code's later default.

    >>> tokens, targets = AssociativeRecall(length=12, pairs=2, vocab=16).batch(1, seed=0, step=0)
    >>> tokens.tolist(), targets[targets != IGNORED].tolist()
    ([[3, 10, 1, 8, 0, 0, 3, 0, 1, 0, 0, 0]], [10, 8])
    """

    length: int = 64
    pairs: int = 4
    vocab: int = 8192
    power: float = 0.01
    random_filler: bool = False

    def __post_init__(self) -> None:
        check(self.pairs >= 1, "pairs", self.pairs, "at least 1")
        check(
            self.length % 2 == 0 and self.length >= 4 * self.pairs,
            "length",
            self.length,
            f"an even number of at least four times pairs, {4 * self.pairs}: pairs, then queries with their gaps",
        )
        check(
            self.vocab % 2 == 0 and self.vocab // 2 > self.pairs,
            "vocab",
            self.vocab,
            f"an even number of at least {2 * self.pairs + 2}: a filler, {self.pairs} keys and as many values",
        )
        check(0 < self.power <= 1, "power", self.power, "more than 0 and at most 1 (no preference for near queries)")

    @property
    def chance(self) -> float:
        """Of a random one of the values shown."""
        return 1 / self.pairs

    def batch(self, batch: int, seed: int, step: int, held_out: bool = False) -> Batch:
        random = random_numbers(seed, step, held_out)
        half, context = self.vocab // 2, 2 * self.pairs
        keys = 1 + distinct(random, batch, half - 1, self.pairs)
        values = half + distinct(random, batch, half, self.pairs)
        tokens = np.zeros((batch, self.length), dtype=np.int64)
        if self.random_filler:
            tokens[:, context:] = random.integers(0, self.vocab, (batch, self.length - context))
        tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
        asked = context + 2 * self._gaps(random, batch)
        np.put_along_axis(tokens, asked, keys, axis=1)
        targets = np.full_like(tokens, IGNORED)
        np.put_along_axis(targets, asked, values, axis=1)
        return as_batch(tokens, targets)

    def _gaps(self, random: np.random.Generator, batch: int) -> np.ndarray:
        """The g of every pair. Drawing one after another without repetition, with probabilities in proportion to
        weights w, gives the order of log w + Gumbel noise from the largest down (Yellott 1977), all rows at once."""
        space = (self.length - 2 * self.pairs) // 2
        weights = (self.power - 1) * np.log(np.arange(1, space + 1))
        return np.argsort(-(weights + random.gumbel(size=(batch, space))), axis=1)[:, : self.pairs]

    def at_length(self, length: int) -> "AssociativeRecall":
        return replace(self, length=length)
