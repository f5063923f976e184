"""The selective scan as it is defined: one step after the other, in plain PyTorch."""

import torch
from jaxtyping import Float
from torch import Tensor


def selective_scan_reference(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, "channels"] | None,
    initial: Float[Tensor, "batch channels state"] | None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels state"]]:
    """y and the final state; the formula stands at `verim.ops.selective_scan`. Any data type and device."""
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if initial is None else initial
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[:, None, :]
        outputs.append((h * C_t[:, None, :]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(u)
    if D is not None:
        y = y + D * u
    return y, h
