"""The definition of the linear cross entropy, in plain PyTorch, any floating-point data type."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def linear_cross_entropy_reference(
    hidden: Float[Tensor, "*rest width"],
    weight: Float[Tensor, "vocab width"],
    bias: Float[Tensor, "vocab"] | None,
    targets: Int[Tensor, "*rest"],
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
) -> Float[Tensor, "*rest"]:
    """The loss of each position, with all logits at once; the formula stands at `verim.ops.linear_cross_entropy`.

    A `softcap` of 0 is none.
    """
    counted = targets != ignore_index
    hidden = hidden.where(counted[..., None], 0)  # what an ignored position holds reaches no gradient
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    normaliser = logits.logsumexp(-1)
    picked = logits.gather(-1, targets.where(counted, 0)[..., None])[..., 0]
    losses = normaliser - (1 - label_smoothing) * picked
    if label_smoothing:
        losses = losses - label_smoothing * logits.mean(-1)
    if z_loss:
        losses = losses + z_loss * normaliser.square()
    return losses.where(counted, 0)
