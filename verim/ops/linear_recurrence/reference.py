"""The linear recurrence as it is defined: one step after the other, in plain PyTorch."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def linear_recurrence_reference(
    a: Shaped[Tensor, "batch length channels"],
    b: Shaped[Tensor, "batch length channels"],
    initial: Shaped[Tensor, "batch channels"] | None,
    reverse: bool,
) -> tuple[Shaped[Tensor, "batch length channels"], Shaped[Tensor, "batch channels"]]:
    """h and the final state; the formula stands at `verim.ops.linear_recurrence`. Any data type and device."""
    h = b.new_zeros(b.shape[0], b.shape[2]) if initial is None else initial
    if reverse:
        a, b = a.flip(1), b.flip(1)
    states = []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        states.append(h)
    all_states = torch.stack(states, 1) if states else torch.zeros_like(b)
    return all_states.flip(1) if reverse else all_states, h
