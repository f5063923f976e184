"""One update of a model's weights: what a training run repeats and what a speed measurement times."""

import torch
from torch import Tensor, nn


def update(model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, clip: float) -> Tensor:
    """Differentiates `loss`, scales the gradient to norm `clip` where it is larger, steps; returns the norm before."""
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=True)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm
