"""What an op takes on this machine: a price a call, a FLOP and a byte for every op, fitted to steps that ran here.

A call of an op that computes f FLOPs and moves b bytes takes

    seconds = launch + f / rate + b / bandwidth + max(0, b − 1 MB) / beyond

with four prices, none negative, for every name in every part of the step (the same product is called from Python in the
forward pass and from C++ in the backward pass). `launch` includes what passes between ops. The bandwidth falls where an
op no longer finds its numbers in a cache of its own. Names that no measured step had are priced by all ops of their
kind of work.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from verim.anatomy.ledger import Bound, Op
from verim.anatomy.whatif.rates import Estimate, work_of
from verim.errors import InputError

CACHED_BYTES = 2**20
_PRICES = 4
_LEANING = 0.05
"""How much an op's own prices lean on those of its kind of work, where few of its calls were measured."""
_FAR = (0.125, 1.0, 8.0)
"""Sizes, of those that were measured, at which they do: so that an op seen at one size has a price a byte."""

Prices = tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """A step that ran here: its seconds while nobody recorded it, and its ops with theirs."""

    name: str
    seconds: float
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class FittedRates:
    """Prices by "part name" of an op and, for ops that were not measured, by kind of work.

    `error`: of steps predicted by a fit to the others, the share by which nine of ten were off at most.
    """

    prices: Mapping[str, Prices]
    error: float
    steps: int

    def estimate(self, op: Op) -> Estimate:
        launch, *rest = _features(op) * np.array(self._prices(op)) * op.calls
        compute, cached, beyond = map(float, rest)
        parts: dict[Bound, float] = {"compute": compute, "memory": cached + beyond, "launch": float(launch)}
        seconds = sum(parts.values())
        bound = max(parts, key=lambda name: parts[name])
        return Estimate(seconds, seconds * (1 - self.error), seconds * (1 + self.error), bound)

    def __str__(self) -> str:
        return (
            f"prices of ops fitted to {self.steps} steps that ran on this machine; nine of ten of them were predicted "
            f"within {self.error:.0%} from the others"
        )

    def step_seconds(self, ops: Iterable[Op]) -> float:
        """Of a step of these ops."""
        return sum(self.estimate(op).seconds for op in ops)

    def to_json(self) -> dict[str, Any]:
        return {"prices": {name: list(values) for name, values in self.prices.items()}, "error": self.error,
                "steps": self.steps}  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FittedRates":
        prices = {name: tuple(map(float, row)) for name, row in values["prices"].items()}
        return cls(prices, float(values["error"]), int(values["steps"]))

    def _prices(self, op: Op) -> Prices:
        for key in (_key(op), work_of(op.name), "all"):
            if key in self.prices:
                return self.prices[key]
        raise AssertionError("a fit has prices of all ops")


def fit(steps: Sequence[Measured]) -> FittedRates:
    """Prices from `steps`, and the error of predicting each from the others. Raises `InputError` for fewer than two."""
    if len(steps) < 2:
        raise InputError(f"steps: got {len(steps)}, expected at least two to fit to")
    errors = []
    for left_out in range(len(steps)):
        others = FittedRates(_prices_of([*steps[:left_out], *steps[left_out + 1 :]]), 0.0, len(steps) - 1)
        step = steps[left_out]
        errors.append(abs(others.step_seconds(step.ops) / step.seconds - 1))
    return FittedRates(_prices_of(steps), float(np.quantile(errors, 0.9)), len(steps))


def _prices_of(steps: Sequence[Measured]) -> dict[str, Prices]:
    """Of all ops, of each kind of work leaning on it, of each op leaning on its kind."""
    groups: dict[str, list[tuple[Op, float]]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for step in steps:
        for op in step.ops:
            share = op.total_seconds / step.seconds
            work = work_of(op.name)
            for key in ("all", work, _key(op)):
                groups[key].append((op, share))
            kinds |= {work: "all", _key(op): work}
    prices: dict[str, Prices] = {}
    for key in ["all", *kinds]:
        if key in groups and key not in prices:
            leaning = prices.get(kinds.get(key, ""))
            prices[key] = _solve(groups[key], leaning)
    return prices


def _solve(seen: Sequence[tuple[Op, float]], leaning: Prices | None) -> Prices:
    """The prices with the least squared error relative to each call, weighted by the share of the step that it took."""
    ops = [(op, share) for op, share in seen if op.total_seconds > 0]
    if not ops:
        return leaning or (0.0,) * _PRICES
    features = np.stack([_features(op) for op, _ in ops])
    seconds = np.array([op.total_seconds / op.calls for op, _ in ops])
    weights = np.sqrt(np.array([share for _, share in ops]))
    rows, targets = [features / seconds[:, None] * weights[:, None]], [weights]
    if leaning is not None:
        told = features @ np.array(leaning)
        known = told > 0
        for far in _FAR:
            stretched = features[known] * np.array([1.0, far, far, far])
            ratio = float(np.average(seconds[known] / told[known], weights=weights[known] ** 2)) if known.any() else 1.0
            expected = stretched @ np.array(leaning) * ratio
            weight = weights[known] * _LEANING
            rows.append(stretched / expected[:, None] * weight[:, None])
            targets.append(weight)
    matrix, target = np.concatenate(rows), np.concatenate(targets)
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    solution, _ = nnls(matrix / scale, target)
    return tuple(map(float, solution / scale))


def _features(op: Op) -> "np.ndarray[Any, Any]":
    """Of one call."""
    moved = op.bytes / op.calls
    return np.array([1.0, op.hardware_flops / op.calls, moved, max(0.0, moved - CACHED_BYTES)])


def _key(op: Op) -> str:
    return f"{op.part} {op.name}"
