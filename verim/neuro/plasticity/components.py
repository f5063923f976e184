"""Rules that find principal components: Oja's for the first, Sanger's and the subspace rule for several."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.neuro.plasticity.rates import Rate, as_rate, batches, check_counts, checked_samples


class _ComponentRule(ABC):
    """Linear neurons y = W (x - mean) that learn by Δw_i = η_i (E[y_i x] - decay), with decays of their own.

    The expectation is the mean over a mini-batch; with `is_adaptive` the rate of a neuron is η over the mean of its
    y² so far, which it can measure itself, so that η has no unit: it is stable below 1 for any scale of the data, and
    components with little variance learn as fast as those with much (Chen & Chang 1995, IEEE Transactions on Neural
    Networks 6, 1255). Without, η is the papers', in units of 1 / variance, and must stay well below 2 / λ, λ the
    largest eigenvalue of the covariance.
    """

    _name: str

    def __init__(
        self,
        components: int = 2,
        rate: float | Rate = 0.05,
        batch: int = 1,
        is_adaptive: bool = True,
        is_centred: bool = True,
        seed: int = 0,
    ) -> None:
        check_counts(self._name, components=components, batch=batch)
        self.components, self.batch, self.is_adaptive, self.is_centred = components, batch, is_adaptive, is_centred
        self.rate, self.seed = as_rate(self._name, rate), seed
        self._weights: Tensor | None = None
        self.samples_seen_ = 0

    @property
    def components_(self) -> Float[Tensor, "components features"]:
        """The weights, a row a neuron. Their norm is what the rule makes it, about 1."""
        if self._weights is None:
            raise InputError(f"{self._name}: nothing is learned yet, expected fit or partial_fit first")
        return self._weights

    def fit(self, x: Float[Tensor, "samples features"], epochs: int = 1) -> Self:
        """From weights drawn anew, through `x` so many times, shuffled, about the mean of x. Returns itself."""
        check_counts(self._name, epochs=epochs)
        x = checked_samples(self._name, x)
        self._weights, self.samples_seen_ = None, 0
        generator = self._begin(x)
        if self.is_centred:
            self.mean_ = x.mean(0)
        for some in batches(x, self.batch, epochs, generator):
            self._step(some)
        return self._checked()

    def partial_fit(self, x: Float[Tensor, "samples features"]) -> Self:
        """Goes on with new samples, in their order; the mean is that of all samples so far. Returns itself."""
        x = checked_samples(self._name, x, None if self._weights is None else self._weights.shape[1])
        if self._weights is None:
            self._begin(x)
        for some in x.split(self.batch):
            if self.is_centred:
                self.mean_ = self.mean_ + (some.mean(0) - self.mean_) * len(some) / (self.samples_seen_ + len(some))
            self._step(some)
        return self._checked()

    def transform(self, x: Float[Tensor, "samples features"]) -> Float[Tensor, "samples components"]:
        """The outputs y = W (x - mean)."""
        weights = self.components_
        return (checked_samples(self._name, x, weights.shape[1]) - self.mean_) @ weights.T

    def _begin(self, x: Tensor) -> torch.Generator:
        if self.components > x.shape[1]:
            raise InputError(
                f"{self._name}: {self.components} components of {x.shape[1]} features, expected as many at most"
            )
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(x.shape[1], self.components, generator=generator, dtype=torch.float64)
        self._weights = torch.linalg.qr(drawn).Q.T.contiguous().to(x)
        self.mean_ = torch.zeros_like(x[0])
        self._power = torch.zeros_like(x[0, : self.components])
        return generator

    def _step(self, x: Tensor) -> None:
        weights = self.components_
        x = x - self.mean_
        y = x @ weights.T
        rate: float | Tensor = self.rate(self.samples_seen_)
        self.samples_seen_ += len(x)
        if self.is_adaptive:
            share = max(len(x) / self.samples_seen_, min(1.0, len(x) / _MEMORY))
            self._power = self._power + share * (y.square().mean(0) - self._power)
            rate = rate * self._gains(torch.maximum(self._power, 1e-6 * self._power.max() + _LEAST))[:, None]
        self._weights = torch.addcmul(weights, y.T @ x - self._decay(y, weights), torch.as_tensor(rate / len(x)).to(x))

    def _checked(self) -> Self:
        if not bool(self.components_.isfinite().all()):
            self._weights = None
            raise InputError(
                f"{self._name}: the weights diverge at rate {self.rate(0):.3g}, expected one below 1, or below 2 / the "
                "largest eigenvalue of the covariance where it is not adaptive"
            )
        return self

    def _gains(self, power: Tensor) -> Tensor:
        return 1 / power

    @abstractmethod
    def _decay(self, y: Tensor, weights: Tensor) -> Tensor:
        """What is taken off each weight, summed over the batch."""


_LEAST = 1e-30  # of a mean y² that a rate is divided by: of data that are all the same
_MEMORY = 1000  # samples over which a neuron measures its mean y², once it has seen as many


class Oja(_ComponentRule):
    """One linear neuron that finds the first principal component (Oja 1982, Journal of Mathematical Biology 15, 267).

        y = wᵀx,    Δw = η E[x y - y² w]

    ‖w‖ → 1 and w → the leading eigenvector of the covariance: the decay y² w keeps the norm with what the synapse
    itself knows. Rates, mini-batches and the mean are as in `verim.neuro.plasticity.components`: η is per unit of the
    neuron's mean y² unless `is_adaptive` is False.

    >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> Oja(rate=0.5, batch=4).fit(x, epochs=50).components_.abs().round(decimals=3)
    tensor([[1., 0.]])
    """

    _name = "Oja"

    def __init__(
        self,
        rate: float | Rate = 0.05,
        batch: int = 1,
        is_adaptive: bool = True,
        is_centred: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(1, rate, batch, is_adaptive, is_centred, seed)

    def _decay(self, y: Tensor, weights: Tensor) -> Tensor:
        return y.square().sum() * weights


class Sanger(_ComponentRule):
    """Neurons in a row that find the principal components in order (Sanger 1989, Neural Networks 2, 459, eq. 7).

        y = W x,    ΔW = η E[y xᵀ - lower(y yᵀ) W]

    with lower() the lower triangle and the diagonal: each neuron sees the input less what those before it explain.
    The rows of W become the leading eigenvectors of the covariance, of norm 1.
    """

    _name = "Sanger"

    def _decay(self, y: Tensor, weights: Tensor) -> Tensor:
        return (y.T @ y).tril() @ weights


class Subspace(_ComponentRule):
    """Neurons that find the leading subspace, on equal footing (Oja 1989, International Journal of Neural Systems 1).

        y = W x,    ΔW = η E[y xᵀ - y yᵀ W]

    The rows of W become an orthonormal basis of the span of the leading eigenvectors, in no order and turned by what
    the first weights were. With `is_adaptive` all neurons share one rate, per unit of their mean y² together, as none
    has a component of its own: what has little variance is learned late, and where the spectrum is steep, `Sanger`
    is much faster.
    """

    _name = "Subspace"

    def _gains(self, power: Tensor) -> Tensor:
        return (1 / power.sum()).expand(len(power))  # the sum of y² bounds the largest eigenvalue of E[y yᵀ]

    def _decay(self, y: Tensor, weights: Tensor) -> Tensor:
        return y.T @ y @ weights
