"""Adam and AdamW: our kernel on the CPU, torch's fused one elsewhere."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as torch_adamw

from verim.ops.adamw import AdamWRule, AdamWTensors, adamw, has_fast_update
from verim.train.optimisers.config import OptimiserConfig, check_finite, check_fraction, weight_bytes, with_gradient
from verim.train.optimisers.groups import WeightGroup, adam_factor


class ScalingOptimiser(torch.optim.Optimizer, ABC):
    """An optimiser that multiplies the gradients itself as it reads them, so that clipping needs no pass of its own."""

    @abstractmethod
    def step(self, closure: Callable[[], Any] | None = None, *, gradient_scale: float | Tensor = 1.0) -> Any:
        """An update with `gradient_scale` times the gradients, which it may or may not change."""


class AdamW(ScalingOptimiser):
    """AdamW over groups with `lr`, `betas`, `eps` and `weight_decay`; its state is named as that of torch's AdamW."""

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, gradient_scale: float | Tensor = 1.0) -> Any:
        loss = evaluated(closure)
        adamw_step(self.state, self.param_groups, gradient_scale)
        return loss


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What torch's optimisers give back from `step`."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def adamw_step(state: dict[Any, Any], groups: Iterable[dict[str, Any]], gradient_scale: float | Tensor = 1.0) -> None:
    """One update of AdamW for `groups`, whose moments stand in `state`, made where they are missing."""
    tensors: list[AdamWTensors] = []
    rules: list[AdamWRule] = []
    counters: list[Tensor] = []
    for group in groups:
        held = [_of(state, weight) for weight in with_gradient(group)]
        if not held:
            continue
        beta1, beta2 = group["betas"]
        if not has_fast_update([tensor for of_weight in held for tensor in of_weight.all()]):
            for sharded in (False, True):  # experts of this rank beside what FSDP shards: torch wants them apart
                alike = [of_weight for of_weight in held if isinstance(of_weight.weight, DTensor) == sharded]
                if alike:
                    _torch_step(state, group, alike, gradient_scale)
            continue
        steps = [state[of_weight.weight]["step"] for of_weight in held]
        counters += steps
        tensors += held
        numbers = group["lr"], beta1, beta2, group["eps"], group["weight_decay"]
        rules += [AdamWRule(*numbers, step=step + 1) for step in torch.stack(steps).tolist()]
    if tensors:
        torch._foreach_add_(counters, 1.0)
        adamw(tensors, rules, float(gradient_scale))


def _of(state: dict[Any, Any], weight: nn.Parameter) -> AdamWTensors:
    held = state[weight]
    if not held:
        held["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        held["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        held["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
    assert weight.grad is not None
    return AdamWTensors(weight, weight.grad, held["exp_avg"], held["exp_avg_sq"])


def _torch_step(
    state: dict[Any, Any], group: dict[str, Any], held: list[AdamWTensors], gradient_scale: float | Tensor
) -> None:
    """Torch's fused kernel divides the gradient by a tensor."""
    beta1, beta2 = group["betas"]
    scale, like = None, held[0].weight
    if isinstance(gradient_scale, Tensor) or gradient_scale != 1.0:
        scale = 1 / torch.as_tensor(gradient_scale, dtype=torch.float32, device=like.device)
    torch_adamw(
        [h.weight for h in held],
        [h.gradient for h in held],
        [h.average for h in held],
        [h.square for h in held],
        [],
        [state[h.weight]["step"] for h in held],
        fused=True,
        grad_scale=scale,
        found_inf=None if scale is None else torch.zeros_like(scale),
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


@dataclass(frozen=True)
class AdamWConfig(OptimiserConfig):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2), the formula of `verim.ops.adamw.adamw`.

    Two moments a weight. `learning_rate` is that of embeddings; a matrix takes learning_rate · min(4, 32 / fan_in), as
    maximal update parametrisation has it for Adam (Yang et al. 2022, arXiv 2203.03466, table 8), so that one number
    serves every width; gains, biases and other vectors take 0.3 of it (docs/LOG.md). Weight decay acts on matrices
    alone.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "eps", "weight_decay")
        check_fraction(self, "beta1", "beta2")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return AdamW(self.groups(model, self.weight_decay), (self.beta1, self.beta2), self.eps)

    def state_bytes(self, model: nn.Module) -> int:
        return 2 * weight_bytes(model)

    def factor(self, group: WeightGroup) -> float:
        return adam_factor(group)


@dataclass(frozen=True)
class AdamConfig(OptimiserConfig):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1): AdamW without weight decay.

    Two moments a weight. By width as AdamW.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "eps")
        check_fraction(self, "beta1", "beta2")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return AdamW(self.groups(model), (self.beta1, self.beta2), self.eps)

    def state_bytes(self, model: nn.Module) -> int:
        return 2 * weight_bytes(model)

    def factor(self, group: WeightGroup) -> float:
        return adam_factor(group)
