"""Mamba-2's state-space layer as it is defined: one step after the other, in plain PyTorch."""

import torch
from jaxtyping import Float
from torch import Tensor


def state_space_dual_reference(
    x: Float[Tensor, "batch length heads head_dim"],
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, "heads"],
    B: Float[Tensor, "batch length groups state"],
    C: Float[Tensor, "batch length groups state"],
    D: Float[Tensor, "heads"] | None,
    initial: Float[Tensor, "batch heads state head_dim"] | None,
) -> tuple[Float[Tensor, "batch length heads head_dim"], Float[Tensor, "batch heads state head_dim"]]:
    """y and the final state; the formula stands at `verim.ops.state_space_dual`. Any data type and device."""
    batch, _, heads, head_dim = x.shape
    groups, state = B.shape[2:]
    h = x.new_zeros(batch, heads, state, head_dim) if initial is None else initial
    B, C = (tensor.repeat_interleave(heads // groups, 2) for tensor in (B, C))
    outputs = []
    for x_t, delta_t, B_t, C_t in zip(x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        driven = B_t[..., :, None] * (delta_t[..., None] * x_t)[..., None, :]
        h = torch.exp(delta_t * A)[..., None, None] * h + driven
        outputs.append((C_t[..., :, None] * h).sum(-2))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + D[:, None] * x
    return y, h
