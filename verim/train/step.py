"""One update of a model's weights: what a training run repeats and what a speed measurement times."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.runtime.phases import phase
from verim.train.optimisers import clipped_step, gradient_norm
from verim.train.task import Batch, WeighedLoss


def update(model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, clip: float) -> Tensor:
    """Differentiates `loss`, scales the gradient to norm `clip` where it is larger, steps; returns the norm before."""
    loss.backward()
    norm = gradient_norm(model.parameters())
    clipped_step(optimiser, norm, clip)
    optimiser.zero_grad(set_to_none=True)
    return norm


def parts_of(batch: Batch, parts: int) -> Iterator[Batch]:
    """The rows of `batch` in `parts` equal parts, in order. Raises `InputError` where they do not divide."""
    rows = len(batch[0])
    if rows % parts:
        raise InputError(f"accumulation: got {parts} parts for a batch of {rows} rows, expected a divisor of {rows}")
    return zip(*(tensor.split(rows // parts) for tensor in batch), strict=True)


def backward(
    task: WeighedLoss,
    model: nn.Module,
    batch: Batch,
    parts: int = 1,
    scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
    device: torch.device | None = None,
) -> Tensor:
    """Adds the gradient of `scaled`(loss(batch)) to the weights', a part of the rows at a time; returns the loss.

        ∇ loss(batch) = Σ_p (weight_p / weight) ∇ loss(batch_p)

    With one part or many the gradient is the same but for rounding, and the activations of one part are held at once.
    Losses that layers add (a balance of experts) are means over their part, not over the batch. `batch` lies on the
    CPU; each part goes to `device` when its turn comes. `scaled` is linear: a loss scaler's, say.
    """
    whole = task.weight(batch)
    total = torch.zeros((), device=device)
    for part in parts_of(batch, parts):
        share = task.weight(part) / whole
        if share == 0.0:
            continue  # no target counts: a mean over none has no value
        with phase("copy"):
            part = tuple(tensor.to(device, non_blocking=True) for tensor in part)
        loss = task.loss(model, part)
        with phase("backward"):
            scaled(loss if share == 1.0 else loss * share).backward()
        total += share * loss.detach()
    return total
