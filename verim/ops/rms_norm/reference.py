"""The definition of the root-mean-square norm, in plain PyTorch, any floating-point data type."""

from jaxtyping import Float
from torch import Tensor


def rms_norm_reference(
    x: Float[Tensor, "*rest width"], gain: Float[Tensor, "width"], eps: float
) -> Float[Tensor, "*rest width"]:
    """See `verim.ops.rms_norm`."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain
