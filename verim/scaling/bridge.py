"""Between the ways of counting parameters: a law in one N, read in another.

Three counts are in use. Kaplan's leaves out every embedding (`blocks` here: what lies in the layers). Hoffmann's has
everything (`total`). Verim's `non_embedding` leaves out the input embedding and counts the head. A transformer's layers
hold 12 · depth · width² parameters; with the ratio `aspect` of width to depth that makes the width
(blocks · aspect / 12)^(1/3), and the embedding has vocabulary · width parameters. So

    total = blocks + matrices · ω · blocks^(1/3),   ω = vocabulary · (aspect / 12)^(1/3)

(Pearce & Song 2406.12907, with ω = 47491 fitted to the shapes of Hoffmann's models, 32 000 tokens, one matrix). At a
billion parameters the two differ by 5 %; at a million most of a model is its embedding. So the count changes the
exponent: Hoffmann's surface, read in `blocks` over Kaplan's sizes, shows Kaplan's N ∝ C^0.73 (`local_exponent`).
"""

import math
from dataclasses import dataclass
from typing import Literal

from scipy.optimize import minimize_scalar

from verim.errors import InputError
from verim.scaling.laws import Surface

Count = Literal["total", "non_embedding", "blocks"]
COUNTS = ("total", "non_embedding", "blocks")
_SEARCHED = (math.log(10.0), math.log(1e17))  # sizes of an optimum


@dataclass(frozen=True)
class Bridge:
    """The counts of a transformer's parameters, for a vocabulary and a shape; by default Hoffmann's.

    `tied`: the head is the input embedding transposed, so that there is one such matrix, not two.

    >>> f"{Bridge().convert(1e6, 'blocks', 'total') / 1e6:.2f} M"
    '5.75 M'
    """

    vocabulary: int = 32_000
    aspect: float = 39.225
    tied: bool = True

    def __post_init__(self) -> None:
        if self.vocabulary < 1:
            raise InputError(f"vocabulary: got {self.vocabulary}, expected the number of tokens, at least 1")
        if not (math.isfinite(self.aspect) and self.aspect > 0):
            raise InputError(f"aspect: got {self.aspect}, expected the ratio of width to depth, above 0")

    def convert(self, N: float, given: Count, wanted: Count) -> float:
        """The `wanted` count of the model whose `given` count is N."""
        if not (math.isfinite(N) and N > 0):
            raise InputError(f"N is {N}: give a finite number of parameters above 0")
        for name, count in (("given", given), ("wanted", wanted)):
            if count not in COUNTS:
                raise InputError(f"{name}: got {count!r}, expected one of {', '.join(COUNTS)}")
        blocks = self._blocks(N, self._beside(given))
        return blocks + self._beside(wanted) * blocks ** (1 / 3)

    def _beside(self, count: Count) -> float:
        """What stands before blocks^(1/3) in a count."""
        total = 1 if self.tied else 2
        matrices = {"blocks": 0, "non_embedding": 1, "total": total}[count]
        return matrices * self.vocabulary * (self.aspect / 12) ** (1 / 3)

    @staticmethod
    def _blocks(N: float, beside: float) -> float:
        """The real root y³ of y³ + beside · y = N, by the hyperbolic form of Cardano's, which cancels nowhere."""
        if beside == 0:
            return N
        half = math.sqrt(beside / 3)
        return (2 * half * math.sinh(math.asinh(N / (2 * half**3)) / 3)) ** 3


def optimal_size(law: Surface, law_counts: Count, C: float, counted: Count, bridge: Bridge | None = None) -> float:
    """The N, counted as `counted`, of least loss where a budget is counted with that N too: 6 · N · D = C.

    `law_counts` is the N that `law` was fitted to. Where both are the same, this is `law.optimum(C).N`.
    """
    bridge = bridge or Bridge()
    if not (math.isfinite(C) and C > 0):
        raise InputError(f"C is {C}: give a finite number of FLOPs above 0")

    def reached(log_size: float) -> float:
        N = math.exp(log_size)
        return law.loss(bridge.convert(N, counted, law_counts), C / (6 * N))

    found = minimize_scalar(reached, bounds=_SEARCHED, method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


def local_exponent(law: Surface, law_counts: Count, C: float, counted: Count, bridge: Bridge | None = None) -> float:
    """d ln N / d ln C of `optimal_size` at C: the exponent that someone who counts so would find there."""
    step = 1.1
    low, high = (optimal_size(law, law_counts, C * factor, counted, bridge) for factor in (1 / step, step))
    return math.log(high / low) / (2 * math.log(step))
