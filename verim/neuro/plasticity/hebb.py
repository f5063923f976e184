"""Hebb's rule, which grows without bound: what it grows along, and how fast."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.neuro.plasticity.rates import Rate, as_rate, batches, check_counts, checked_samples


class Hebb:
    """A linear neuron whose synapses grow with the product of input and output (Hebb 1949, as a rate rule).

        y = wᵀx,    Δw = η E[y x] = η C w,    C = E[x xᵀ]

    The expectation is the mean over a mini-batch of `batch` samples (1: online). The weights diverge: w_t is
    (1 + ηC)^t w_0, so log ‖w‖ grows by log(1 + ηλ) a step in the end, λ the largest eigenvalue of C, and w turns to
    its eigenvector. As the rule is linear in w, it is kept as a direction and the logarithm of its norm, and never
    overflows. Inputs are taken as they are: subtract their mean for the covariance instead of the second moment.

    After `fit` or `partial_fit`: `components_` [1, features], the direction; `log_norm_`; `growth_rate_`, the growth
    of log ‖w‖ over the sum of the rates of the last call (λ where the rate is small beside 1 / λ).

    >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(Hebb(rate=1e-2, batch=4).fit(x, epochs=200).partial_fit(x).growth_rate_, 2)  # λ = 9 / 2
    4.4
    """

    def __init__(self, rate: float | Rate = 1e-2, batch: int = 1, seed: int = 0) -> None:
        check_counts("Hebb", batch=batch)
        self.rate, self.batch, self.seed = as_rate("Hebb", rate), batch, seed
        self.components_: Float[Tensor, "1 features"] | None = None
        self.log_norm_ = 0.0
        self.growth_rate_ = math.nan
        self.samples_seen_ = 0

    def fit(self, x: Float[Tensor, "samples features"], epochs: int = 1) -> "Hebb":
        """From weights drawn anew, through `x` so many times, shuffled. Returns itself."""
        check_counts("Hebb", epochs=epochs)
        self.components_, self.log_norm_, self.samples_seen_ = None, 0.0, 0
        return self._learn(x, epochs)

    def partial_fit(self, x: Float[Tensor, "samples features"]) -> "Hebb":
        """Goes on with new samples, in their order. Returns itself."""
        return self._learn(x, None)

    def _learn(self, x: Tensor, epochs: int | None) -> "Hebb":
        known = self.components_
        x = checked_samples("Hebb", x, None if known is None else known.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        if known is None:
            weights = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(x)
            weights = weights / weights.norm()
        else:
            weights = known[0].to(x)
        before, rates = self.log_norm_, 0.0
        for some in x.split(self.batch) if epochs is None else batches(x, self.batch, epochs, generator):
            rate = self.rate(self.samples_seen_)
            weights = weights + rate * (some.T @ (some @ weights)) / len(some)
            norm = float(weights.norm())
            if not 0 < norm < math.inf:
                raise InputError(f"Hebb: rate {rate} makes a single step infinite, expected one below 1 / E[x²]")
            weights = weights / norm
            self.log_norm_ += math.log(norm)
            self.samples_seen_ += len(some)
            rates += rate
        self.components_ = weights[None]
        self.growth_rate_ = (self.log_norm_ - before) / rates
        return self

    def transform(self, x: Float[Tensor, "samples features"]) -> Float[Tensor, "samples 1"]:
        """The output of the unit direction."""
        if self.components_ is None:
            raise InputError("Hebb: transform before fit, expected fit or partial_fit first")
        return checked_samples("Hebb", x, self.components_.shape[1]) @ self.components_.to(x).T
