"""RWKV-7's state evolution as it is defined: one step after the other, in plain PyTorch."""

import torch
from jaxtyping import Float
from torch import Tensor

Heads = Float[Tensor, "batch length heads head_dim"]
Matrices = Float[Tensor, "batch heads head_dim head_dim"]


def wkv7_reference(
    r: Heads, w: Heads, k: Heads, v: Heads, a: Heads, b: Heads, state: Matrices | None
) -> tuple[Heads, Matrices]:
    """y and the final state; the formula stands at `verim.ops.wkv7`. Any data type and device."""
    batch, _, heads, head_dim = r.shape
    S = r.new_zeros(batch, heads, head_dim, head_dim) if state is None else state
    outputs = []
    for r_t, w_t, k_t, v_t, a_t, b_t in zip(*(tensor.unbind(1) for tensor in (r, w, k, v, a, b)), strict=True):
        found = torch.einsum("bhk,bhkv->bhv", a_t, S)
        S = w_t[..., None] * S + b_t[..., None] * found[..., None, :] + k_t[..., None] * v_t[..., None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", r_t, S))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v), S
