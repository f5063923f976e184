"""Parity: whether the ones so far are odd in number, the simplest state that has to be tracked."""

from dataclasses import dataclass, replace

import numpy as np

from verim.data.synthetic.task import IGNORED, Batch, as_batch, check, random_numbers


@dataclass(frozen=True)
class Parity:
    """Independent fair bits; the target at every position is the exclusive or of the bits up to it.

        tokens   1 0 1 1 0 1
        targets  1 1 0 1 1 0

    Positions before `asked_from` are not asked: at a length beyond the trained one that tells the positions which a
    model has never been at from those it knows.

    Hahn 2020 (arXiv 1906.06755) has it as a language; a target at every position is how Liu et al. 2022 train
    automata (arXiv 2210.10749). Grazzi et al. 2024 (arXiv 2411.12537, figure 1): trained up to length 40, evaluated
    from 40 to 256.

    >>> tokens, targets = Parity(length=6).batch(1, seed=0, step=0)
    >>> tokens.tolist(), targets.tolist()
    ([[0, 1, 1, 1, 1, 0]], [[0, 1, 0, 1, 0, 0]])
    """

    length: int = 40
    asked_from: int = 0

    def __post_init__(self) -> None:
        check(self.length >= 1, "length", self.length, "at least 1")
        check(
            0 <= self.asked_from < self.length,
            "asked_from",
            self.asked_from,
            f"a position from 0 to {self.length - 1}, the last",
        )

    @property
    def vocab(self) -> int:
        return 2

    @property
    def chance(self) -> float:
        return 0.5

    def batch(self, batch: int, seed: int, step: int, held_out: bool = False) -> Batch:
        tokens = random_numbers(seed, step, held_out).integers(0, 2, (batch, self.length))
        targets = np.bitwise_xor.accumulate(tokens, axis=1)
        targets[:, : self.asked_from] = IGNORED
        return as_batch(tokens, targets)

    def at_length(self, length: int) -> "Parity":
        return replace(self, length=length, asked_from=self.length if length > self.length else 0)
