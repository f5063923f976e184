"""A plan as one value: everything that `verim plan --json` prints."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verim.scaling.lifecycle import LifeCycle
from verim.scaling.planning.cost import Cost, Job
from verim.scaling.planning.fleet import Fleet
from verim.scaling.planning.layouts import SHOWN, Ranking
from verim.scaling.planning.sizes import Size
from verim.scaling.planning.source import Band, PlanLaw
from verim.train.rules import Recipe


@dataclass(frozen=True)
class Allocation:
    """Where a budget goes: a size, how it is trained, what that takes, and the loss to expect.

    `seconds` is None where no layout fits.
    """

    size: Size
    recipe: Recipe
    N: float
    loss: float
    band: Band | None
    seconds: float | None

    @property
    def tokens(self) -> int:
        return self.recipe.trainer.steps * self.recipe.batch * self.recipe.length

    @property
    def flops(self) -> float:
        return self.tokens * self.size.flops_per_token

    def short(self) -> dict[str, Any]:
        """In a few figures."""
        return {
            "parameters": self.size.total,
            "tokens": self.tokens,
            "tokens_per_parameter": self.tokens / self.size.total,
            "depth": self.size.depth,
            "width": self.size.width,
            "flops": self.flops,
            "loss": self.loss,
            "interval": None if self.band is None else [self.band.low, self.band.high],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Life:
    """The plan over its life of `inference_tokens`, and the size that reaches the same loss for the fewest FLOPs."""

    inference_tokens: float
    planned: LifeCycle
    cheapest: LifeCycle

    def to_json(self) -> dict[str, Any]:
        return {
            "inference_tokens": self.inference_tokens,
            "planned": _of_life(self.planned),
            "cheapest": _of_life(self.cheapest),
            "saved": 1 - self.cheapest.total_flops / self.planned.total_flops,
        }


@dataclass(frozen=True)
class Answer:
    """A plan. `to_json` is what `verim plan --json` prints:

    - `architecture`, `width`, `depth`, `vocab`, `length`; `parameters`, `active`, `non_embedding` weights, and
      `counted`, those that the law counts, as `counts` says.
    - `tokens`, `tokens_per_parameter` (of all parameters), `batch` (sequences), `batch_tokens`, `steps`,
      `learning_rate`, `flops` (training, forward and backward).
    - `loss` in `unit`, its `interval` [low, high] of `interval_percent`, both null where the law has none.
    - `law`, `law_source`, `fitted_flops` [low, high], `decades_outside` (above 0: the budget lies beyond the range).
    - `device`, `device_source`, `count`, `precision`; `seconds`, `energy_joules`, `cost` (null where a figure that
      they need is not known), `utilisation`: model FLOP/s over the devices' peak.
    - `memory_bytes` of a device, of `memory_available_bytes`; `fits`; `unsharded_memory_bytes`: with copies alone.
    - `layouts`: the best five: the fields of `ParallelConfig`, `accumulation`, `memory_bytes`, `memory` by what lies
      there, `step_seconds`, `seconds` of a step by cause, `utilisation`, `why` not the first. `losers`: the others by
      `cause`, `count` and the figure of the `nearest`; `refused`: divisions that cannot be, by rule, and their count.
    - `quarter`, `quadruple`: the same budget divided by 4 and times 4, in a few figures.
    - `life_cycle`: null, or `planned` and `cheapest` at the same loss, each with parameters, tokens and FLOPs, and the
      share of the life's FLOPs that is `saved`.
    - `warnings`: sentences.
    """

    allocation: Allocation
    job: Job
    law: PlanLaw
    fleet: Fleet
    ranking: Ranking
    unsharded: Cost | None
    quarter: Allocation | None
    quadruple: Allocation | None
    life: Life | None
    price: float | None
    warnings: tuple[str, ...]

    @property
    def energy_joules(self) -> float | None:
        watts, seconds = self.fleet.device.watts, self.allocation.seconds
        return None if watts is None or seconds is None else watts * seconds * self.fleet.count

    @property
    def cost(self) -> float | None:
        seconds = self.allocation.seconds
        return None if self.price is None or seconds is None else self.price * self.fleet.count * seconds / 3600

    @property
    def memory_bytes(self) -> float:
        """Of a device: of the best layout, or of the one that is nearest to fitting."""
        return (self.ranking.best or self.ranking.too_large[0]).memory_bytes

    def utilisation(self, step_seconds: float) -> float:
        """Model FLOP/s over the peak of all devices."""
        peak = self.fleet.device.peak("float32" if self.fleet.precision == "float32" else "bfloat16")
        return self.job.size.flops_per_token * self.job.tokens / (step_seconds * peak * self.fleet.count)

    def to_json(self) -> dict[str, Any]:
        at, size, law, best = self.allocation, self.allocation.size, self.law, self.ranking.best
        return {
            "architecture": size.architecture,
            **at.short(),
            "active": size.active,
            "non_embedding": size.non_embedding,
            "counted": at.N,
            "counts": law.counts,
            "vocab": size.config.vocab,
            "length": size.length,
            "batch": at.recipe.batch,
            "batch_tokens": at.recipe.batch * at.recipe.length,
            "steps": at.recipe.trainer.steps,
            "learning_rate": at.recipe.trainer.optimiser.learning_rate,
            "unit": law.unit,
            "interval_percent": None if at.band is None else at.band.level,
            "law": law.name,
            "law_source": law.source,
            "fitted_flops": [law.fitted.low, law.fitted.high],
            "decades_outside": law.fitted.decades_outside(at.flops),
            "device": self.fleet.device.name,
            "device_source": self.fleet.device.source,
            "count": self.fleet.count,
            "precision": self.fleet.precision,
            "energy_joules": self.energy_joules,
            "cost": self.cost,
            "utilisation": None if best is None else self.utilisation(best.step_seconds),
            "memory_bytes": self.memory_bytes,
            "memory_available_bytes": self.ranking.available,
            "fits": best is not None,
            "unsharded_memory_bytes": None if self.unsharded is None else self.unsharded.memory_bytes,
            "layouts": [self._layout(cost) for cost in self._shown()],
            "losers": [
                {"cause": cause, "count": count, "nearest": nearest} for cause, count, nearest in self.ranking.losers()
            ],
            "refused": [{"rule": rule, "count": count} for rule, count in self.ranking.refused],
            "quarter": None if self.quarter is None else self.quarter.short(),
            "quadruple": None if self.quadruple is None else self.quadruple.short(),
            "life_cycle": None if self.life is None else self.life.to_json(),
            "warnings": list(self.warnings),
        }

    def _shown(self) -> Sequence[Cost]:
        return self.ranking.fitting[:SHOWN]

    def _layout(self, cost: Cost) -> dict[str, Any]:
        return {
            **asdict(cost.layout.parallel),
            "accumulation": cost.layout.accumulation,
            "memory_bytes": cost.memory_bytes,
            "memory": dict(cost.memory),
            "step_seconds": cost.step_seconds,
            "seconds": dict(cost.seconds),
            "utilisation": self.utilisation(cost.step_seconds),
            "why": self.ranking.why(cost),
        }


def _of_life(life: LifeCycle) -> dict[str, float]:
    return {
        "parameters": life.N,
        "tokens": life.D,
        "tokens_per_parameter": life.tokens_per_parameter,
        "training_flops": life.training_flops,
        "inference_flops": life.inference_flops,
        "total_flops": life.total_flops,
    }
