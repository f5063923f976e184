"""Induction heads: say what followed the special token when it was seen before."""

from dataclasses import dataclass, replace

import numpy as np

from verim.data.synthetic.task import IGNORED, Batch, as_batch, check, random_numbers


@dataclass(frozen=True)
class InductionHeads:
    """Random tokens; the special token, vocab - 1, stands at a random place and once more at the end.

        tokens   3 1 S 4 1 5 9 2 S        (S is the special token)
        targets  - - - - - - - - 4

    Other tokens are drawn from 0 ... vocab - 2; the first place of the special token is uniform over 0 ... length - 3.
    One answer a sequence is asked for, at its last position.

    The circuit is that of Olsson et al. 2022 (arXiv 2209.11895); the task is Dao et al. 2022 (arXiv 2212.14052,
    section 3.1, table 1: length 30, vocab 20) as Gu & Dao 2023 use it (arXiv 2312.00752, section 4.1.2 and appendix
    E.1): vocab 16, trained at length 256, evaluated from 64 to 1 048 576.

    >>> tokens, targets = InductionHeads(length=8).batch(1, seed=0, step=0)
    >>> tokens.tolist(), targets[0, -1].item()
    ([[0, 8, 13, 14, 13, 15, 1, 15]], 1)
    """

    length: int = 256
    vocab: int = 16

    def __post_init__(self) -> None:
        check(self.length >= 3, "length", self.length, "at least 3: the special token, what follows, and it again")
        check(self.vocab >= 3, "vocab", self.vocab, "at least 3: the special token and two others")

    @property
    def chance(self) -> float:
        """Of a random one of the length - 2 tokens shown: it is the asked one, or happens to be the same."""
        return 1 / (self.length - 2) + (1 - 1 / (self.length - 2)) / (self.vocab - 1)

    def batch(self, batch: int, seed: int, step: int, held_out: bool = False) -> Batch:
        random = random_numbers(seed, step, held_out)
        special = self.vocab - 1
        tokens = random.integers(0, special, (batch, self.length))
        place = random.integers(0, self.length - 2, (batch, 1))
        np.put_along_axis(tokens, place, special, axis=1)
        tokens[:, -1] = special
        targets = np.full_like(tokens, IGNORED)
        targets[:, -1:] = np.take_along_axis(tokens, place + 1, axis=1)
        return as_batch(tokens, targets)

    def at_length(self, length: int) -> "InductionHeads":
        return replace(self, length=length)
