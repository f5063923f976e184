"""Lion: the sign of a momentum, one moment a weight."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verim.train.optimisers.adam import evaluated
from verim.train.optimisers.config import OptimiserConfig, check_finite, check_fraction, weight_bytes, with_gradient
from verim.train.optimisers.groups import WeightGroup, adam_factor


class Lion(torch.optim.Optimizer):
    """Lion over groups with `lr`, `betas` and `weight_decay`; its moment is named `exp_avg`."""

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        for group in self.param_groups:
            weights = with_gradient(group)
            if not weights:
                continue
            gradients: list[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
            averages: list[Tensor] = [self._average(weight) for weight in weights]
            beta1, beta2 = group["betas"]
            signs = torch._foreach_sign(torch._foreach_lerp(averages, gradients, 1 - beta1))
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, signs, alpha=-group["lr"])
            torch._foreach_lerp_(averages, gradients, 1 - beta2)
        return loss

    def _average(self, weight: Tensor) -> Tensor:
        held = self.state[weight]
        if not held:
            held["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        average: Tensor = held["exp_avg"]
        return average


@dataclass(frozen=True)
class LionConfig(OptimiserConfig):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2):

    u = sign(β₁ m + (1 - β₁) g), w ← w - η (u + λ w), m ← β₂ m + (1 - β₂) g.

    One moment a weight, half of Adam's. Every entry moves by η, so the paper takes a rate 3 to 10 times smaller than
    AdamW's and a decay as much larger (section 5). By width as Adam (`adam_factor`): a sign is a normalised entry.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "weight_decay")
        check_fraction(self, "beta1", "beta2")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return Lion(self.groups(model, self.weight_decay), (self.beta1, self.beta2))

    def state_bytes(self, model: nn.Module) -> int:
        return weight_bytes(model)

    def factor(self, group: WeightGroup) -> float:
        return adam_factor(group)
