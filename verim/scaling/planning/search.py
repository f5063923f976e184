"""Which size a budget is for: the one that a law says the least loss of, among those of the dial."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from verim.scaling.planning.sizes import Size, size_of, widths
from verim.scaling.planning.source import PlanLaw


@dataclass(frozen=True)
class Dial:
    """The sizes of an architecture for a vocabulary and a length, as `law` counts them."""

    architecture: str
    vocab: int
    length: int
    law: PlanLaw

    def __len__(self) -> int:
        return len(_grid())

    def at(self, place: int) -> Size:
        """The size at that place of the dial, from 0."""
        return size_of(self.architecture, _grid()[place], self.vocab, self.length)

    def nearest(self, N: float) -> int:
        """The place of the size whose parameters are nearest to `N`, in the logarithm."""
        low, high = 0, len(self) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.law.count(self.at(middle)) < N else (low, middle)
        around = [place for place in (low - 1, low) if 0 <= place < len(self)]
        return min(around, key=lambda place: abs(math.log(self.law.count(self.at(place)) / N)))

    def optimum(self, C: float) -> int:
        """The place of the size that the law gives C FLOPs to, at the FLOPs a token that this size takes."""
        place = self.nearest(self.law.optimum(C).N)
        for _ in range(3):
            place = self.nearest(self.law.optimum(C, self.at(place)).N)
        return place

    def for_flops(self, flops: float) -> Size:
        """The size of the least loss within a training budget; on the law's own frontier where it goes by that."""
        start = self.optimum(flops)
        if self.law.follows_frontier:
            return self.at(start)
        return self.at(self.least(lambda size: flops / size.flops_per_token, start, 3))

    def least(self, tokens_of: Callable[[Size], float], start: int, window: int) -> int:
        """The place of the least loss, each size trained on `tokens_of` it (0: it cannot be).

        `window` sizes on either side of `start` are looked at; where the least is on their edge the search goes on
        there, and below where none of them can be.
        """
        seen: dict[int, float] = {}

        def loss(place: int) -> float:
            if place not in seen:
                size = self.at(place)
                tokens = tokens_of(size)
                seen[place] = self.law.loss(self.law.count(size), tokens) if tokens > 0 else math.inf
            return seen[place]

        low, high = max(0, start - window), min(len(self) - 1, start + window)
        while True:
            best = min(range(low, high + 1), key=loss)
            if low > 0 and (best == low or math.isinf(loss(best))):
                low = max(0, low - window)
            elif best == high < len(self) - 1 and math.isfinite(loss(best)):
                high = min(len(self) - 1, high + window)
            else:
                return best


@lru_cache(maxsize=1)
def _grid() -> tuple[int, ...]:
    return tuple(widths())


def compute_optimal_flops(law: PlanLaw, size: Size) -> float:
    """The budget whose optimum `size` is, by bisection: the law's N grows with the budget."""
    low, high = 1e3, 1e33
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if law.count(size) > law.optimum(middle, size).N else (low, middle)
    return low
