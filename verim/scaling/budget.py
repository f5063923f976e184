"""What to train within a budget of time, tokens or FLOPs when nothing but the data is given: a rule, before any law.

A study fits a law to the user's own text and plans by it. Without one the size follows from where the minima of our
ladders lay (`EXPECTED_OPTIMUM`) and from the measured speed of every size on this machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verim.errors import InputError
from verim.scaling.ladder import EXPECTED_OPTIMUM
from verim.scaling.plan import tokens_within
from verim.scaling.speed import Candidate

ALPHA, BETA = 0.44, 0.36
"""Exponents of the rule's surface: β/(α + β) is the 0.45 of `EXPECTED_OPTIMUM`, their sum what studies' laws have."""


@dataclass(frozen=True)
class Budget:
    """How much training there is: one of `seconds`, `tokens` and `flops`."""

    seconds: float | None = None
    tokens: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InputError(
                f"minutes, tokens, flops: got {', '.join(given) or 'none'}, expected one of them: it is the budget"
            )
        (name, value), *_ = given.items()
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}: got {value:g}, expected a finite number above 0")

    def tokens_of(self, candidate: Candidate, evaluations: int) -> float:
        """How many tokens a size is trained on within the budget."""
        if self.tokens is not None:
            return self.tokens
        if self.flops is not None:
            return self.flops / candidate.flops_per_token
        assert self.seconds is not None, "a budget has one of three"
        return tokens_within(candidate, self.seconds, evaluations)


@dataclass(frozen=True)
class Choice:
    """A size and its tokens."""

    candidate: Candidate
    tokens: float


def choose(candidates: Sequence[Candidate], budget: Budget, evaluations: int) -> Choice:
    """The size with the least expected loss within the budget.

        excess(N, D) ∝ β (N/N₀)^-α + α (D/D₀)^-β

    whose minimum along 6 N D = C₀ lies at N₀, and elsewhere at N₀ (C/C₀)^(β/(α + β)). At equal time the best size is
    larger than at equal FLOPs, since larger models reach more FLOP/s.
    """
    if not candidates:
        raise InputError("candidates: got none, expected the measured sizes of one architecture")
    least, at, _ = EXPECTED_OPTIMUM.get(candidates[0].architecture, EXPECTED_OPTIMUM["transformer"])
    tokens_at = at / (6 * least)

    def excess(choice: Choice) -> float:
        size, tokens = choice.candidate.non_embedding / least, choice.tokens / tokens_at
        return float(BETA * size**-ALPHA + ALPHA * tokens**-BETA)

    return min((Choice(size, budget.tokens_of(size, evaluations)) for size in candidates), key=excess)
