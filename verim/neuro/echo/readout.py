"""Readouts of echo states: ridge with a penalty chosen by validation, exact to tiny penalties, and online."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError


class TunedRidge:
    """min ‖Xw - y‖² + penalty · samples · ‖w‖², on centred features, with the penalty that does best on held-out rows.

    By a singular value decomposition of X, in float64: of XᵀX, half the digits would be gone, and with them the
    penalties of 1e-15 that a noiseless signal wants (`verim.neuro.Ridge` is for the others). The last fifth of the
    rows is held out where there are several penalties; the weights are then of all rows.
    """

    def __init__(self, penalties: Sequence[float] = (1e-9, 1e-7, 1e-5, 1e-3)) -> None:
        if not penalties or not all(penalty > 0 for penalty in penalties):
            raise InputError(f"TunedRidge: penalties are {tuple(penalties)}, expected numbers more than 0")
        self.penalties = tuple(penalties)

    def fit(self, x: Float[Tensor, "samples features"], y: Float[Tensor, "samples outputs"]) -> "TunedRidge":
        """Returns itself."""
        if len(x) != len(y) or len(x) < 5:
            raise InputError(f"TunedRidge: {len(x)} samples and {len(y)} targets, expected as many, at least 5")
        self.penalty = self.penalties[0]
        if len(self.penalties) > 1:
            kept = len(x) - len(x) // 5
            errors = [
                float((x[kept:] @ weights + offset - y[kept:]).square().sum())
                for weights, offset in _solutions(x[:kept], y[:kept], self.penalties)
            ]
            self.penalty = self.penalties[errors.index(min(errors))]
        ((self.weights, self.offset),) = _solutions(x, y, (self.penalty,))
        return self

    def predict(self, x: Float[Tensor, "*samples features"]) -> Float[Tensor, "*samples outputs"]:
        """The outputs."""
        return x @ self.weights + self.offset


def _solutions(x: Tensor, y: Tensor, penalties: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    mean, middle = x.mean(0), y.mean(0)
    left, sizes, right = torch.linalg.svd(x - mean, full_matrices=False)
    seen = left.T @ (y - middle)
    found = []
    for penalty in penalties:
        weights = right.T @ ((sizes / (sizes.square() + penalty * len(x)).clamp_min(1e-300))[:, None] * seen)
        found.append((weights, middle - mean @ weights))
    return found


class RecursiveLeastSquares:
    """The ridge solution kept up to date with each sample, in O(features²) (Haykin, Adaptive Filter Theory, table 9.1).

        k = P x / (`forgetting` + xᵀP x),   W ← W + k (y - Wᵀx)ᵀ,   P ← (P - k xᵀP) / `forgetting`

    from P = 1 / `penalty`. With `forgetting` 1 the weights after n samples minimise Σ‖Wᵀx - y‖² + penalty ‖W‖².
    """

    def __init__(self, features: int, outputs: int = 1, forgetting: float = 1.0, penalty: float = 1e-6) -> None:
        if features < 1 or outputs < 1 or not 0 < forgetting <= 1 or not penalty > 0:
            raise InputError(
                f"RecursiveLeastSquares: features, outputs, forgetting, penalty are {features}, {outputs}, "
                f"{forgetting}, {penalty}, expected at least 1, at least 1, in (0, 1], more than 0"
            )
        self.forgetting = forgetting
        self.weights = torch.zeros(features, outputs, dtype=torch.float64)
        self.inverse = torch.eye(features, dtype=torch.float64) / penalty

    def partial_fit(
        self, x: Float[Tensor, "samples features"], y: Float[Tensor, "samples outputs"]
    ) -> Float[Tensor, "samples outputs"]:
        """Learns from each sample in turn; returns what was predicted of each before its target was seen."""
        if x.shape != (len(y), len(self.weights)) or y.shape[1:] != self.weights.shape[1:]:
            raise InputError(
                f"RecursiveLeastSquares: x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}, expected "
                f"[samples, {len(self.weights)}] and [samples, {self.weights.shape[1]}]"
            )
        if not bool(x.isfinite().all()) or not bool(y.isfinite().all()):
            raise InputError("RecursiveLeastSquares: x or y hold NaN or infinity, expected finite numbers")
        predicted = []
        for sample, target in zip(x.double(), y.double(), strict=True):
            seen = self.inverse @ sample
            gain = seen / (self.forgetting + sample @ seen)
            predicted.append(sample @ self.weights)
            self.weights = self.weights + torch.outer(gain, target - predicted[-1])
            inverse = (self.inverse - torch.outer(gain, seen)) / self.forgetting
            self.inverse = (inverse + inverse.T) / 2  # else roundings make it lose its symmetry, then its sign
        return torch.stack(predicted)
