"""The definition of the cross entropy, in plain PyTorch, any floating-point data type."""

from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy_reference(
    logits: Float[Tensor, "*rest vocab"], targets: Int[Tensor, "*rest"], ignore_index: int, reduction: str
) -> Float[Tensor, ""]:
    """See `verim.ops.cross_entropy`."""
    counted = targets != ignore_index
    picked = logits.gather(-1, targets.where(counted, 0)[..., None])[..., 0]
    total = (logits.logsumexp(-1) - picked).where(counted, 0).sum()
    return total if reduction == "sum" else total / counted.sum()
