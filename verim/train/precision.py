"""In what a model computes and is kept: float32, halves under autocast, or weights that are halves themselves."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.train.optimisers import OptimiserConfig, ScalingOptimiser
from verim.train.optimisers.adam import evaluated
from verim.train.optimisers.config import with_gradient

Kind = Literal["float32", "bfloat16", "float16", "bfloat16_weights"]
KINDS: tuple[Kind, ...] = ("float32", "bfloat16", "float16", "bfloat16_weights")


@dataclass(frozen=True)
class Precision:
    """Mixed precision (Micikevicius et al. 2018, arXiv 1710.03740).

    - `kind`: "float32"; "bfloat16" and "float16": weights in float32, matrix products in halves by `torch.autocast`;
      "bfloat16_weights": weights, activations and gradients are bfloat16, half the memory, and the optimiser keeps
      the weights in float32 (section 3.1: an update below 2^-9 of a weight would be lost).
    - `initial_scale`, `growth_interval`: of float16 alone, whose gradients would be zero below 6e-8: the loss is
      multiplied by a scale, which doubles after so many steps without overflow and halves, without a step, at each one
      (section 3.2 and torch's `GradScaler`).
    """

    kind: Kind = "float32"
    initial_scale: float = 2.0**16
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"precision: got {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not 0 < self.initial_scale < math.inf:
            raise InputError(f"initial_scale: got {self.initial_scale}, expected a positive finite number")
        if self.growth_interval < 1:
            raise InputError(f"growth_interval: got {self.growth_interval}, expected at least 1 step")

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """The context of a forward pass on `device` ("cpu", "cuda"); the backward pass follows it by itself."""
        if self.kind in ("bfloat16", "float16"):
            return torch.autocast(device, dtype=torch.bfloat16 if self.kind == "bfloat16" else torch.float16)
        return nullcontext()

    def scaler(self, device: str) -> torch.amp.GradScaler:
        """The loss scaler; one that does nothing but for float16. Its `state_dict()` is of plain numbers."""
        return torch.amp.GradScaler(
            device,
            init_scale=self.initial_scale,
            growth_interval=self.growth_interval,
            enabled=self.kind == "float16",
        )

    def build(self, config: OptimiserConfig, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of `model`, which with "bfloat16_weights" is made bfloat16 here."""
        if self.kind != "bfloat16_weights":
            return config.build(model)
        return MasterWeights(config.build(model.to(torch.bfloat16)))


class MasterWeights(ScalingOptimiser):
    """`inner`, an optimiser that has made no step, on float32 copies of its weights, which are roundings of them.

    The state of a weight is what `inner` keeps of it, in float32, and its copy, `master`, made at the first step.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__([dict(group) for group in inner.param_groups], dict(inner.defaults))
        self._inner = inner
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        for weight, held in inner.state.items():  # Adagrad has some before its first step
            self.state[weight] = {name: _in_float32(value) for name, value in held.items()}
        inner.state.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, gradient_scale: float | Tensor = 1.0) -> Any:
        loss = evaluated(closure)
        for group, inside in zip(self.param_groups, self._inner.param_groups, strict=True):
            inside.update(group)
            inside["params"] = [self._master(weight, gradient_scale) for weight in with_gradient(group)]
        self._inner.step()
        for group, inside in zip(self.param_groups, self._inner.param_groups, strict=True):
            for weight, master in zip(with_gradient(group), inside["params"], strict=True):
                weight.copy_(master)
                self.state[weight] = {"master": master.data, **self._inner.state.pop(master, {})}
                master.grad = None
        return loss

    def _master(self, weight: nn.Parameter, gradient_scale: float | Tensor) -> nn.Parameter:
        """The copy of `weight` with its gradient, and in the inner optimiser what is kept of it."""
        held = dict(self.state[weight])
        values = held.pop("master", None)
        master = self._masters.setdefault(weight, nn.Parameter(weight.detach().float()))
        if values is not None:
            master.data = values
        assert weight.grad is not None
        master.grad = weight.grad.float() * gradient_scale
        if held:
            self._inner.state[master] = held
        return master


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
