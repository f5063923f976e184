"""RWKV's weighted key-value as it is defined: one step after the other, in plain PyTorch."""

import torch
from jaxtyping import Float
from torch import Tensor

LOWEST = -1e38  # stands for a weight of zero: -inf, less -inf, would be NaN


def wkv_reference(
    k: Float[Tensor, "batch length channels"],
    v: Float[Tensor, "batch length channels"],
    w: Float[Tensor, "channels"],
    u: Float[Tensor, "channels"],
    state: Float[Tensor, "batch 3 channels"] | None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch 3 channels"]]:
    """y and the final state; the formula stands at `verim.ops.wkv`. Any data type and device."""
    if state is None:
        numerator, denominator = k.new_zeros(2, k.shape[0], k.shape[2])
        largest = torch.full_like(numerator, LOWEST)
    else:
        numerator, denominator, largest = state.unbind(1)
        largest = largest.clamp(min=LOWEST)
    outputs = []
    for k_t, v_t in zip(k.clamp(min=LOWEST).unbind(1), v.unbind(1), strict=True):
        top = torch.maximum(largest, u + k_t)
        past, present = torch.exp(largest - top), torch.exp(u + k_t - top)
        outputs.append((past * numerator + present * v_t) / (past * denominator + present))
        decayed = largest - w
        largest = torch.maximum(decayed, k_t)
        past, present = torch.exp(decayed - largest), torch.exp(k_t - largest)
        numerator = past * numerator + present * v_t
        denominator = past * denominator + present
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(k)
    return y, torch.stack([numerator, denominator, largest], 1)
