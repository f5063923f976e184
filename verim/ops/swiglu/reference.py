"""The definition of the gated unit, in plain PyTorch, any floating-point data type."""

import torch
from jaxtyping import Float
from torch import Tensor


def swiglu_reference(gate_and_value: Float[Tensor, "*rest two_hidden"]) -> Float[Tensor, "*rest hidden"]:
    """See `verim.ops.swiglu`."""
    gate, value = gate_and_value.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * value
