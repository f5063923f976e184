"""AdamW with a byte for each moment of a large matrix."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.ops.adamw import BLOCK, AdamWRule, EightBitTensors, adamw_8bit
from verim.ops.adamw.codes import encode
from verim.train.optimisers.adam import ScalingOptimiser, adamw_step, evaluated
from verim.train.optimisers.config import (
    OptimiserConfig,
    check_finite,
    check_fraction,
    is_sharded,
    weight_bytes,
    with_gradient,
)
from verim.train.optimisers.groups import WeightGroup, adam_factor, weight_groups

SMALLEST = 4096
"""Weights of a matrix whose moments become bytes: below, there is nothing to save."""


class AdamW8bit(ScalingOptimiser):
    """Groups with `bits` 8 keep their moments as bytes, those with 32 are AdamW's.

    State of the former: `exp_avg` and `exp_avg_sq_root` (uint8), `exp_avg_scales` and `exp_avg_sq_root_scales`
    (float32), `step`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0, "bits": 32})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, gradient_scale: float | Tensor = 1.0) -> Any:
        loss = evaluated(closure)
        adamw_step(self.state, [group for group in self.param_groups if group["bits"] == 32], gradient_scale)
        tensors: list[EightBitTensors] = []
        rules: list[AdamWRule] = []
        for group in self.param_groups:
            for weight in with_gradient(group) if group["bits"] == 8 else []:
                tensors.append(self._tensors(weight))
                self.state[weight]["step"] += 1
                beta1, beta2 = group["betas"]
                numbers = group["lr"], beta1, beta2, group["eps"], group["weight_decay"]
                rules.append(AdamWRule(*numbers, step=self.state[weight]["step"].item()))
        adamw_8bit(tensors, rules, float(gradient_scale))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which makes all state of the weights' data type; bytes and scales are put back as they were."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for weight, number in zip(weights, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[weight][name] = value.to(self.state[weight][name].device, copy=True)

    def _tensors(self, weight: nn.Parameter) -> EightBitTensors:
        held = self.state[weight]
        if is_sharded(weight):
            raise InputError(
                "adamw_8bit: the weights are sharded over ranks, whose parts do not end with blocks of 256; use zero 1 "
                "or 2, which keep weights whole, or adamw"
            )
        if not held:
            held["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            for name, signed in (("exp_avg", True), ("exp_avg_sq_root", False)):
                zeros = torch.zeros_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
                held[name], held[f"{name}_scales"] = encode(zeros, signed)
        assert weight.grad is not None
        of_average = held["exp_avg"], held["exp_avg_scales"]
        return EightBitTensors(
            weight, weight.grad, *of_average, held["exp_avg_sq_root"], held["exp_avg_sq_root_scales"]
        )


@dataclass(frozen=True)
class AdamW8bitConfig(OptimiserConfig):
    """AdamW with moments of 8 bits (Dettmers et al. 2022, arXiv 2110.02861), `verim.ops.adamw.adamw_8bit`.

    Two bytes and 8 / 256 of one for their scales a weight, in place of 8, for matrices of at least 4096 weights.
    Embeddings, gains and biases keep float32, as the paper has it (section 2.3: rare tokens' gradients are unlike the
    others' of their block). Formula, rates by width and weight decay are AdamW's.
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
        large = {id(weight) for weight in large_matrices(model)}
        groups: list[dict[str, Any]] = []
        for group in self.groups(model, self.weight_decay):
            for bits in (8, 32):
                weights = [weight for weight in group["params"] if (id(weight) in large) == (bits == 8)]
                groups += [group | {"params": weights, "bits": bits}] if weights else []
        return AdamW8bit(groups, (self.beta1, self.beta2), self.eps)

    def state_bytes(self, model: nn.Module) -> int:
        large = large_matrices(model)
        in_bytes = sum(2 * weight.numel() + 2 * 4 * -(-weight.numel() // BLOCK) for weight in large)
        return in_bytes + 2 * (weight_bytes(model) - sum(weight.numel() * weight.element_size() for weight in large))

    def factor(self, group: WeightGroup) -> float:
        return adam_factor(group)


def large_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of `model` whose moments are kept as bytes."""
    return [
        weight
        for group in weight_groups(model)
        for weight in group.weights
        if group.kind in ("matrix", "output") and weight.numel() >= SMALLEST
    ]
