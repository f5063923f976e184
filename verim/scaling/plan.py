"""The plan: which model to train in a given time on this machine, and the loss to expect from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verim.errors import InputError
from verim.scaling.fit import FittedLaw, Prediction
from verim.scaling.ladder import LEAST_STRETCH, expected_seconds
from verim.scaling.speed import Candidate
from verim.train.rules import LENGTH, recipe

EVALUATIONS = 10
"""How often the proof is judged on held-out text on its way: the points of its learning curve."""


@dataclass(frozen=True)
class Plan:
    """One model, its tokens, and what to expect of it: loss with its 90 % interval, FLOPs and seconds."""

    candidate: Candidate
    tokens: float
    flops: float
    seconds: float
    predicted: Prediction

    def to_json(self) -> dict[str, Any]:
        """Everything, for `from_json` to read back."""
        return asdict(self) | {"predicted": list(self.predicted)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Plan":
        parts = {"candidate": Candidate(**value["candidate"]), "predicted": Prediction(*value["predicted"])}
        return cls(**(value | parts))

    def description(self) -> dict[str, Any]:
        """The plan in the words of study.json."""
        how = recipe(self.tokens)
        return {
            "architecture": self.candidate.architecture,
            "width": self.candidate.width,
            "depth": self.candidate.depth,
            "heads": self.candidate.heads,
            "non_embedding": self.candidate.non_embedding,
            "total": self.candidate.total,
            "tokens": how.trainer.steps * how.batch * LENGTH,
            "batch_tokens": how.batch * LENGTH,
            "length": LENGTH,
            "threads": self.candidate.threads,
            "learning_rate": how.trainer.optimiser.learning_rate,
            "steps": how.trainer.steps,
            "budget": self.flops,
            "seconds": self.seconds,
        }


def tokens_within(candidate: Candidate, seconds: float, evaluations: int = EVALUATIONS) -> float:
    """About the most tokens whose run is expected to take `seconds`.

    The batch follows from the tokens by its rule and grows in steps, and time falls a little where it does.
    """
    low, high = 1.0, 1e18
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if expected_seconds(candidate, middle, evaluations) <= seconds else (low, middle)
    return low


def plan_for_time(law: FittedLaw, candidates: Sequence[Candidate], seconds: float, largest_budget: float) -> Plan:
    """The size of one architecture with the least predicted loss after `seconds` of training on this machine.

    Not the compute-optimal size: larger models reach more FLOP/s here, so at equal time the best one is
    larger than at equal FLOPs. Where a size would spend less than 3 × `largest_budget` in that time it is given
    that much, and takes longer.
    """
    if not candidates:
        raise InputError("candidates: got none, expected the measured sizes of one architecture")
    plans = []
    for candidate in candidates:
        tokens = tokens_within(candidate, seconds)
        tokens = max(tokens, LEAST_STRETCH * largest_budget / candidate.flops_per_token)
        plans.append(
            Plan(
                candidate,
                tokens,
                tokens * candidate.flops_per_token,
                expected_seconds(candidate, tokens, EVALUATIONS),
                law.predict(candidate.non_embedding, tokens),
            )
        )
    within = [plan for plan in plans if plan.seconds <= 1.1 * seconds]
    return min(within or [min(plans, key=lambda p: p.seconds)], key=lambda plan: plan.predicted.loss)


def best_plan(plans: Mapping[str, Plan]) -> Plan:
    """The plan whose interval ends lowest: a law that its ladder carries badly must not win by a lucky middle."""
    return min(plans.values(), key=lambda plan: plan.predicted.high)
