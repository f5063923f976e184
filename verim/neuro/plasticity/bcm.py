"""The rule of Bienenstock, Cooper and Munro: a threshold that slides with a neuron's own activity."""

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.neuro.plasticity.rates import Rate, as_rate, batches, check_counts, checked_samples


class BCM:
    """Neurons that become selective to one of the patterns they see.

        y = max(0, a - `inhibition` · mean of the others' a),    a = max(0, W x)
        Δw_i = η E[y_i (y_i - θ_i) x] / θ_i,                    θ_i = the mean of y_i² over the last `memory` samples

    Bienenstock, Cooper & Munro 1982 (Journal of Neuroscience 2, 32), with θ = E[y²] of Intrator & Cooper 1992 (Neural
    Networks 5, 3) and the division by θ of Law & Cooper 1994 (PNAS 91, 7797), which keeps the speed of learning when
    θ grows. A response above θ is potentiated, one below is depressed; as θ follows the square of the activity,
    potentiation gets harder in a busy neuron and easier in a silent one: homeostasis. With linearly independent
    patterns of probability p each, the stable states respond to one of them alone, by y = 1/p = θ. `inhibition`
    between neurons (Cooper & Scofield 1988, PNAS 85, 1973, as a mean field) makes them choose different ones; without
    it each chooses by its own first weights.

    The expectation is the mean over a mini-batch of `batch` samples, through which θ stays. Inputs are taken as
    they are. θ must move faster than the weights: `memory` well below 1 / rate samples.

    After `fit` or `partial_fit`: `components_` [neurons, features], the weights; `thresholds_` [neurons].
    """

    def __init__(
        self,
        neurons: int = 1,
        rate: float | Rate = 1e-3,
        batch: int = 1,
        memory: float = 100.0,
        inhibition: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_counts("BCM", neurons=neurons, batch=batch)
        if not memory >= batch:
            raise InputError(f"BCM: memory is {memory} samples, expected at least a batch of {batch}")
        if not inhibition >= 0:
            raise InputError(f"BCM: inhibition is {inhibition}, expected 0 or more")
        self.neurons, self.batch, self.memory, self.inhibition = neurons, batch, memory, inhibition
        self.rate, self.seed = as_rate("BCM", rate), seed
        self._weights: Tensor | None = None
        self.samples_seen_ = 0

    @property
    def components_(self) -> Float[Tensor, "neurons features"]:
        """The weights, a row a neuron."""
        if self._weights is None:
            raise InputError("BCM: nothing is learned yet, expected fit or partial_fit first")
        return self._weights

    def fit(self, x: Float[Tensor, "samples features"], epochs: int = 1) -> "BCM":
        """From weights drawn anew, through `x` so many times, shuffled. Returns itself."""
        check_counts("BCM", epochs=epochs)
        x = checked_samples("BCM", x)
        generator = self._begin(x)
        for some in batches(x, self.batch, epochs, generator):
            self._step(some)
        return self._checked()

    def partial_fit(self, x: Float[Tensor, "samples features"]) -> "BCM":
        """Goes on with new samples, in their order. Returns itself."""
        x = checked_samples("BCM", x, None if self._weights is None else self._weights.shape[1])
        if self._weights is None:
            self._begin(x)
        for some in x.split(self.batch):
            self._step(some)
        return self._checked()

    def transform(self, x: Float[Tensor, "samples features"]) -> Float[Tensor, "samples neurons"]:
        """The responses y, 0 or more."""
        return self._response(checked_samples("BCM", x, self.components_.shape[1]))

    def selectivity(self, patterns: Float[Tensor, "patterns features"]) -> Float[Tensor, "neurons"]:
        """1 - mean response / largest response over `patterns` (Bienenstock et al. 1982): 0 for a neuron that
        responds to all alike, 1 - 1 / patterns to one alone; 0 also for one that never responds."""
        y = self.transform(patterns)
        largest = y.amax(0)
        return torch.where(largest > 0, 1 - y.mean(0) / largest.clamp_min(1e-30), 0.0)

    def _begin(self, x: Tensor) -> torch.Generator:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(self.neurons, x.shape[1], generator=generator, dtype=torch.float64).to(x)
        # Any first weights do; with these the first responses are of the order of 1, where θ and y are alike.
        self._weights = drawn / (drawn @ x.abs().mean(0)).clamp_min(1e-12)[:, None]
        self.samples_seen_ = 0
        self.thresholds_ = self._response(x[: max(self.batch, round(self.memory))]).square().mean(0)
        return generator

    def _response(self, x: Tensor) -> Tensor:
        alone = (x @ self.components_.T).clamp_min(0)
        if not self.inhibition:
            return alone
        others = (alone.sum(1, keepdim=True) - alone) / max(1, self.neurons - 1)
        return (alone - self.inhibition * others).clamp_min(0)

    def _step(self, x: Tensor) -> None:
        weights = self.components_
        y = self._response(x)
        rate = self.rate(self.samples_seen_)
        self.thresholds_ = self.thresholds_ + (y.square().mean(0) - self.thresholds_) * min(1.0, len(x) / self.memory)
        theta = self.thresholds_.clamp_min(1e-6)  # a silent neuron's
        change = (y * (y - theta) / theta).T @ x / len(x)
        self._weights = weights + rate * change
        self.samples_seen_ += len(x)

    def _checked(self) -> "BCM":
        if not bool(self.components_.isfinite().all()):
            self._weights = None
            raise InputError(
                f"BCM: the weights diverge at rate {self.rate(0):.3g} and memory {self.memory}, expected less of both"
            )
        return self
