"""Linear readouts with scikit-learn's habits: `fit`, `predict`, `score`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.errors import InputError


def _checked(name: str, features: Tensor, targets: Tensor | None = None) -> Float[Tensor, "samples features"]:
    if features.dim() != 2 or not features.is_floating_point():
        raise InputError(f"{name}: features have shape {tuple(features.shape)}, expected floats [samples, features]")
    if not bool(features.isfinite().all()):
        raise InputError(f"{name}: features hold NaN or infinity, expected finite numbers")
    if targets is not None:
        if len(targets) != len(features) or not len(targets):
            raise InputError(
                f"{name}: {len(features)} samples and {len(targets)} targets, expected as many, at least 1"
            )
        if targets.is_floating_point() and not bool(targets.isfinite().all()):
            raise InputError(f"{name}: targets hold NaN or infinity, expected finite numbers")
    return features.double()


class _Scale:
    """Features less their mean over their deviation; a constant feature counts nothing."""

    def __init__(self, features: Tensor) -> None:
        self.mean = features.mean(0)
        deviation = features.std(0, correction=0)
        self.factor = torch.where(deviation > 1e-9 * (1 + self.mean.abs()), 1 / deviation, 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.factor


class Ridge:
    """Linear regression with a penalty: min ‖Xw - y‖² + `penalty` · samples · ‖w‖², on standardised features.

    Solved in closed form in float64, by whichever of XᵀX and XXᵀ is smaller.
    """

    def __init__(self, penalty: float = 1e-3) -> None:
        if not penalty > 0:
            raise InputError(f"Ridge: penalty is {penalty}, expected more than 0")
        self.penalty = penalty

    def fit(self, features: Float[Tensor, "samples features"], targets: Float[Tensor, "samples *outputs"]) -> "Ridge":
        """Returns itself."""
        x = _checked("Ridge", features, targets)
        self.scale = _Scale(x)
        x = self.scale(x)
        self.is_flat = targets.dim() == 1
        y = targets.double().view(len(targets), -1)
        self.offset = y.mean(0)
        samples, width = x.shape
        weight = self.penalty * samples
        if width <= samples:
            gram = x.T @ x + weight * torch.eye(width, dtype=x.dtype)
            self.weights = torch.linalg.solve(gram, x.T @ (y - self.offset))
        else:
            gram = x @ x.T + weight * torch.eye(samples, dtype=x.dtype)
            self.weights = x.T @ torch.linalg.solve(gram, y - self.offset)
        return self

    def predict(self, features: Float[Tensor, "samples features"]) -> Float[Tensor, "samples *outputs"]:
        """In float64, in the shape of the targets."""
        y = self.scale(_checked("Ridge", features)) @ self.weights + self.offset
        return y[:, 0] if self.is_flat else y

    def score(self, features: Float[Tensor, "samples features"], targets: Float[Tensor, "samples *outputs"]) -> float:
        """R²: 1 less the squared error over the variance, over all outputs together."""
        y = targets.double()
        error = (self.predict(features) - y).square().sum()
        return float(1 - error / (y - y.mean(0)).square().sum())


class RidgeClassifier:
    """The class whose indicator a `Ridge` predicts largest."""

    def __init__(self, penalty: float = 1e-3) -> None:
        self.ridge = Ridge(penalty)

    def fit(self, features: Float[Tensor, "samples features"], labels: Int[Tensor, "samples"]) -> "RidgeClassifier":
        """Returns itself."""
        self.classes, places = torch.unique(labels, return_inverse=True)
        indicators = torch.nn.functional.one_hot(places, len(self.classes)).double()
        self.ridge.fit(features, indicators)
        return self

    def decision(self, features: Float[Tensor, "samples features"]) -> Float[Tensor, "samples classes"]:
        """The predicted indicators."""
        return self.ridge.predict(features)

    def predict(self, features: Float[Tensor, "samples features"]) -> Int[Tensor, "samples"]:
        """Labels as they were given."""
        return self.classes[self.decision(features).argmax(1)]

    def score(self, features: Float[Tensor, "samples features"], labels: Int[Tensor, "samples"]) -> float:
        """The share of right labels."""
        return float((self.predict(features) == labels).double().mean())


class LogisticClassifier:
    """Multinomial logistic regression with penalty / 2 · ‖w‖², on standardised features, by L-BFGS."""

    def __init__(self, penalty: float = 1e-3, iterations: int = 200) -> None:
        if not penalty >= 0 or iterations < 1:
            raise InputError("LogisticClassifier: penalty must be 0 or more, iterations at least 1")
        self.penalty, self.iterations = penalty, iterations

    def fit(self, features: Float[Tensor, "samples features"], labels: Int[Tensor, "samples"]) -> "LogisticClassifier":
        """Returns itself."""
        x = _checked("LogisticClassifier", features, labels)
        self.scale = _Scale(x)
        x = self.scale(x)
        self.classes, places = torch.unique(labels, return_inverse=True)
        weights = torch.zeros(x.shape[1], len(self.classes), dtype=x.dtype, requires_grad=True)
        offset = torch.zeros(len(self.classes), dtype=x.dtype, requires_grad=True)
        optimiser = torch.optim.LBFGS([weights, offset], max_iter=self.iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ weights + offset, places)
            value = value + self.penalty / 2 * weights.square().sum()
            value.backward()
            return value

        optimiser.step(loss)
        self.weights, self.offset = weights.detach(), offset.detach()
        return self

    def decision(self, features: Float[Tensor, "samples features"]) -> Float[Tensor, "samples classes"]:
        """Logits."""
        return self.scale(_checked("LogisticClassifier", features)) @ self.weights + self.offset

    def predict(self, features: Float[Tensor, "samples features"]) -> Int[Tensor, "samples"]:
        """Labels as they were given."""
        return self.classes[self.decision(features).argmax(1)]

    def score(self, features: Float[Tensor, "samples features"], labels: Int[Tensor, "samples"]) -> float:
        """The share of right labels."""
        return float((self.predict(features) == labels).double().mean())
