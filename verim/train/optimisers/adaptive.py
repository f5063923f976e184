"""Adagrad, Adadelta and RMSprop: a rate for every weight, from the squares of its gradients. Torch's own."""

from dataclasses import dataclass

import torch
from torch import nn

from verim.train.optimisers.config import OptimiserConfig, check_finite, check_fraction, decay_first, weight_bytes
from verim.train.optimisers.groups import WeightGroup, adam_factor


@dataclass(frozen=True)
class AdagradConfig(OptimiserConfig):
    """Adagrad (Duchi, Hazan & Singer 2011, figure 1, the diagonal form): s ← s + g², w ← w - η g / (√s + ε).

    One moment a weight. The rate of a weight only ever falls. By width as Adam (`adam_factor`): the update's entries
    have the size η / √t, whatever that of the gradient's.
    """

    eps: float = 1e-10
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "eps", "weight_decay")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = self.groups_decaying_before(model, self.weight_decay)
        return decay_first(torch.optim.Adagrad(groups, eps=self.eps))

    def state_bytes(self, model: nn.Module) -> int:
        return weight_bytes(model)

    def factor(self, group: WeightGroup) -> float:
        return adam_factor(group)


@dataclass(frozen=True)
class AdadeltaConfig(OptimiserConfig):
    """Adadelta (Zeiler 2012, arXiv 1212.5701, algorithm 1), ρ the decay of both averages:

    s ← ρ s + (1 - ρ) g², Δ ← g √(d + ε) / √(s + ε), d ← ρ d + (1 - ρ) Δ², w ← w - η Δ.

    Two moments a weight. The paper has no rate: η = 1 is its algorithm. By width as Adam: Δ has the size of earlier
    Δ, whatever that of the gradient's.
    """

    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "rho")
        check_finite(self, "eps", "weight_decay")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = self.groups_decaying_before(model, self.weight_decay)
        return decay_first(torch.optim.Adadelta(groups, rho=self.rho, eps=self.eps))

    def state_bytes(self, model: nn.Module) -> int:
        return 2 * weight_bytes(model)

    def factor(self, group: WeightGroup) -> float:
        return adam_factor(group)


@dataclass(frozen=True)
class RMSpropConfig(OptimiserConfig):
    """RMSprop (Tieleman & Hinton 2012, Coursera lecture 6.5): s ← α s + (1 - α) g², w ← w - η g / (√s + ε).

    One moment a weight. s starts at zero and is not corrected for it: the first updates are 1 / √(1 - α) times as
    large as later ones. By width as Adam.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "alpha")
        check_finite(self, "eps", "weight_decay")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = self.groups_decaying_before(model, self.weight_decay)
        return decay_first(torch.optim.RMSprop(groups, alpha=self.alpha, eps=self.eps))

    def state_bytes(self, model: nn.Module) -> int:
        return weight_bytes(model)

    def factor(self, group: WeightGroup) -> float:
        return adam_factor(group)
