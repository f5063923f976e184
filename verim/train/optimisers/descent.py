"""Gradient descent, plain, with momentum and with Nesterov's: torch's `SGD`."""

from dataclasses import dataclass

import torch
from torch import nn

from verim.train.optimisers.config import OptimiserConfig, check_finite, check_fraction, decay_first, weight_bytes
from verim.train.optimisers.groups import WeightGroup, descent_factor


@dataclass(frozen=True)
class SGDConfig(OptimiserConfig):
    """Gradient descent (Robbins & Monro 1951; Cauchy 1847): w ← w - η g.

    No state. By width as `descent_factor` says: matrices fan_out / fan_in, tables and vectors channels / 32.
    """

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "weight_decay")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return decay_first(torch.optim.SGD(self.groups_decaying_before(model, self.weight_decay)))

    def state_bytes(self, model: nn.Module) -> int:
        return 0

    def factor(self, group: WeightGroup) -> float:
        return descent_factor(group)


@dataclass(frozen=True)
class MomentumConfig(OptimiserConfig):
    """Heavy ball (Polyak 1964; Sutskever et al. 2013, equations 1 and 2): b ← μ b + g, w ← w - η b.

    One moment a weight. As torch has it, η is outside b, so a change of the rate acts at once. A constant gradient
    moves the weight 1 / (1 - μ) times as far as without momentum. By width as plain descent.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "momentum")
        check_finite(self, "weight_decay")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = self.groups_decaying_before(model, self.weight_decay)
        return decay_first(torch.optim.SGD(groups, momentum=self.momentum))

    def state_bytes(self, model: nn.Module) -> int:
        return weight_bytes(model) if self.momentum else 0

    def factor(self, group: WeightGroup) -> float:
        return descent_factor(group)


@dataclass(frozen=True)
class NesterovConfig(OptimiserConfig):
    """Nesterov's momentum (Nesterov 1983; Sutskever et al. 2013, equations 3 and 4, about the shifted weights):

    b ← μ b + g, w ← w - η (g + μ b). One moment a weight. By width as plain descent.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "momentum")
        check_finite(self, "weight_decay")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = self.groups_decaying_before(model, self.weight_decay)
        return decay_first(torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.momentum > 0))

    def state_bytes(self, model: nn.Module) -> int:
        return weight_bytes(model) if self.momentum else 0

    def factor(self, group: WeightGroup) -> float:
        return descent_factor(group)
