"""Muon for the matrices, AdamW for the rest, in one optimiser: torch's Muon."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.train.optimisers.adam import adamw_step, evaluated
from verim.train.optimisers.config import OptimiserConfig, check_finite, check_fraction, with_gradient
from verim.train.optimisers.groups import WeightGroup, adam_factor, weight_groups


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal`: True are torch's Muon's, the others' update is AdamW's.

    torch's Muon knows 2-dimensional weights alone. It is given matrices that lie in the memory of ours: the weight
    itself, each matrix of a stack, or a convolution's filters as rows; and the moments (`momentum_buffer`) likewise.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float,
        nesterov: bool,
        iterations: int,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(
            groups, {"lr": 0.0, "weight_decay": 0.0, "betas": betas, "eps": eps, "orthogonal": False, "shape": (1, 1)}
        )
        self._settings: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": iterations}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        for group in self.param_groups:
            weights = with_gradient(group) if group["orthogonal"] else []
            if weights:
                self._orthogonal_step(weights, group)
        adamw_step(self.state, [group for group in self.param_groups if not group["orthogonal"]])
        return loss

    def _orthogonal_step(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        moments: dict[nn.Parameter, Tensor] = {}
        for weight in weights:
            held = self.state[weight]
            if not held:
                held["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            assert weight.grad is not None
            tensors = (weight, weight.grad, held["momentum_buffer"])
            for matrix, slope, moment in zip(*(matrices_of(t, group["shape"]) for t in tensors), strict=True):
                proxy = nn.Parameter(matrix)
                proxy.grad = slope
                moments[proxy] = moment
        inner = torch.optim.Muon(list(moments), lr=group["lr"], weight_decay=group["weight_decay"], **self._settings)
        for proxy, moment in moments.items():
            inner.state[proxy]["momentum_buffer"] = moment
        inner.step()


def matrices_of(tensor: Tensor, shape: tuple[int, int]) -> list[Tensor]:
    """The matrices [fan_out, fan_in] of a weight as views: itself, those of a stack, or a convolution's filters."""
    tensor = tensor.detach()
    return [tensor] if tensor.dim() == 2 else list(tensor.view(-1, *shape).unbind())


@dataclass(frozen=True)
class MuonConfig(OptimiserConfig):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for the matrices of layers:

    b ← μ b + (1 - μ) g, u = (1 - μ) g + μ b (Nesterov's; else b), w ← w - η λ w - η √max(1, fan_out / fan_in) O(u)

    with O(u) about U Vᵀ of u = U S Vᵀ: `iterations` of Newton-Schulz, 3.4445 x - 4.7750 x³ + 2.0315 x⁵ on the singular
    values, which leaves them between 0.7 and 1.2. Embeddings, the output, gains and biases are left to AdamW, as its
    author does, with the rate `adam_learning_rate`.

    One moment for a matrix, two for the rest. By width: a matrix takes the rate as it is. The update's spectral norm is
    then η √(fan_out / fan_in) wherever fan_out is at least fan_in, which is what maximal update parametrisation asks
    of every optimiser (Yang, Simon & Bernstein 2023, arXiv 2310.17813, condition 1); the rest as AdamW.
    """

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    weight_decay: float = 0.1
    adam_learning_rate: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "eps", "weight_decay")
        check_fraction(self, "momentum", "beta1", "beta2")
        if not 0 < self.adam_learning_rate < math.inf:
            raise InputError(f"adam_learning_rate: got {self.adam_learning_rate}, expected a positive finite number")
        if not 1 <= self.iterations < 100:
            raise InputError(f"iterations: got {self.iterations}, expected 1 to 99")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for group in weight_groups(model):
            rate = self.rate(group)
            decay = self.weight_decay if group.kind in ("matrix", "output") else 0.0
            settings = {"base_rate": rate, "lr": rate, "weight_decay": decay, "orthogonal": group.kind == "matrix"}
            shape = group.fan_out, group.fan_in
            groups.append({"params": list(group.weights), "shape": shape} | settings)
        return Muon(groups, self.momentum, self.nesterov, self.iterations, (self.beta1, self.beta2), self.eps)

    def state_bytes(self, model: nn.Module) -> int:
        return sum(
            (1 if group.kind == "matrix" else 2) * weight.numel() * weight.element_size()
            for group in weight_groups(model)
            for weight in group.weights
        )

    def rate(self, group: WeightGroup) -> float:
        if group.kind == "matrix":
            return self.learning_rate
        return self.adam_learning_rate * (1.0 if self.rates == "plain" else self.factor(group))

    def factor(self, group: WeightGroup) -> float:
        return 1.0 if group.kind == "matrix" else adam_factor(group)
