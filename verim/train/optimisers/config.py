"""What every optimiser's configuration has, and how it becomes an optimiser of a model's weights."""

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.train.optimisers.groups import WeightGroup, weight_groups

Rates = Literal["by_width", "plain"]
_DECAY = "decoupled_decay"  # of a group, where torch's own weight_decay would go through the gradient


@dataclass(frozen=True)
class OptimiserConfig(ABC):
    """An optimiser of any model.

    - `learning_rate`: the rate η of the formula, before the schedule and the width's rule.
    - `rates`: "by_width", so that one learning rate serves every width: each kind of weights has its own multiple of
      it, as the docstring of the optimiser says; or "plain": η for all, as with the optimiser by itself.

    `build(model)` gives a `torch.optim.Optimizer`. Each of its groups keeps its own rate as `base_rate`, which a
    schedule scales into `lr`. Its state is made of tensors alone (`verim.train.optimisers.state_tensors`). Weight
    decay, where there is one, is decoupled (Loshchilov & Hutter 2019): w ← w - lr λ w, whatever the gradient, on
    matrices alone.
    """

    learning_rate: float
    rates: Rates = field(default="by_width", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate: got {self.learning_rate}, expected a positive finite number")
        if self.rates not in ("by_width", "plain"):
            raise InputError(f"rates: got {self.rates!r}, expected by_width or plain")

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of `model`."""

    @abstractmethod
    def state_bytes(self, model: nn.Module) -> int:
        """Bytes of what the optimiser keeps beside the weights of `model`, counters of steps apart."""

    @abstractmethod
    def factor(self, group: WeightGroup) -> float:
        """What multiplies the learning rate of `group`, where `rates` is "by_width"."""

    def groups(self, model: nn.Module, weight_decay: float = 0.0, decay: str = "weight_decay") -> list[dict[str, Any]]:
        """Groups of weights for torch's optimisers: `params`, `base_rate`, `lr`, and the decay under the name `decay`.

        Weights with the same rate and decay stand in one group, in the order of `weight_groups`.
        """
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for group in weight_groups(model):
            lambda_ = weight_decay if group.kind in ("matrix", "output") else 0.0
            found.setdefault((self.rate(group), lambda_), []).extend(group.weights)
        return [
            {"params": weights, "base_rate": rate, "lr": rate, decay: lambda_}
            for (rate, lambda_), weights in found.items()
        ]

    def rate(self, group: WeightGroup) -> float:
        """The learning rate of `group` before the schedule."""
        return self.learning_rate * (1.0 if self.rates == "plain" else self.factor(group))

    def groups_decaying_before(self, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """`groups` for one of torch's optimisers that has no decoupled decay; `decay_first` is to be called on it."""
        return self.groups(model, weight_decay, _DECAY)


def decay_first(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`optimiser`, each of whose steps begins with w ← w - lr λ w for the decaying weights that have a gradient."""
    if any(group[_DECAY] for group in optimiser.param_groups):
        optimiser.register_step_pre_hook(_decay)
    return optimiser


@torch.no_grad()
def _decay(optimiser: torch.optim.Optimizer, *call: Any) -> None:
    for group in optimiser.param_groups:
        decaying = [weight for weight in group["params"] if weight.grad is not None]
        if group[_DECAY] and decaying:
            torch._foreach_mul_(decaying, 1 - group["lr"] * group[_DECAY])


def check_finite(config: Any, *names: str) -> None:
    """Raises `InputError` unless each field is a finite number of at least 0."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name}: got {getattr(config, name)}, expected a finite number of at least 0")


def check_fraction(config: Any, *names: str) -> None:
    """Raises `InputError` unless each field lies in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"{name}: got {getattr(config, name)}, expected a number in [0, 1)")


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is torch's `DTensor`, of which this rank has a part: there is none before the module is loaded,
    which takes a while and is not part of every build of torch."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights of `model` that are trained, and so of a moment of all of them."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)


def with_gradient(group: dict[str, Any]) -> list[Any]:
    """The weights of `group` that a step changes. Raises `InputError` for a sparse or complex gradient."""
    weights = [weight for weight in group["params"] if weight.grad is not None]
    for weight in weights:
        if weight.grad.is_sparse or weight.grad.is_complex():
            kind = "sparse" if weight.grad.is_sparse else "complex"
            raise InputError(
                f"the gradient of a weight of shape {tuple(weight.shape)} is {kind}, expected a dense real one: "
                "build embeddings with sparse=False"
            )
    return weights
