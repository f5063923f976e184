"""The norm of a model's gradient, and steps with a gradient that is not longer than asked."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from verim import ops
from verim.train.optimisers.adam import ScalingOptimiser
from verim.train.optimisers.config import is_sharded


def gradient_norm(weights: Iterable[nn.Parameter]) -> Tensor:
    """√(Σ g²) over all entries of all gradients, a scalar tensor on their device; of sharded ones over all ranks."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm: Any = ops.gradient_norm(gradients)
    whole: Tensor = norm.full_tensor() if is_sharded(norm) else norm
    return whole


def clip_factor(norm: Tensor, clip: float) -> Tensor:
    """min(1, clip / norm): what scales a gradient of this norm down to `clip` where it is longer.

    1e-6 is added to the norm, as torch's `clip_grad_norm_` does, which has to divide by zero too.
    """
    return (clip / (norm + 1e-6)).clamp(max=1.0)


def clipped_step(
    optimiser: torch.optim.Optimizer,
    norm: Tensor,
    clip: float,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """A step with the gradient, whose `norm` is known, times min(1, clip / norm) (Pascanu et al. 2013, algorithm 1).

    AdamW reads the gradient once and scales it then. For other optimisers it is scaled in place, on the CPU only where
    it is longer than `clip`. With a loss scaler, whose `unscale_` must have been called, the step is its: none where a
    gradient was not finite.
    """
    step: Callable[..., Any] = optimiser.step if scaler is None else functools.partial(scaler.step, optimiser)
    factor = clip_factor(norm, clip)
    if isinstance(optimiser, ScalingOptimiser):
        step(gradient_scale=factor)
        return
    if not norm.is_cpu or factor < 1:
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        nn.utils.clip_grads_with_norm_(weights, clip, norm)
    step()
