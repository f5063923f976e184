"""The depthwise causal convolution as it is defined, in plain PyTorch."""

import torch
from jaxtyping import Float
from torch import Tensor


def causal_conv1d_reference(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, "channels"] | None,
    initial: Float[Tensor, "batch kernel_minus_1 channels"] | None,
    activation: str | None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch kernel_minus_1 channels"]]:
    """y and the final state; the formula stands at `verim.ops.causal_conv1d`. Any data type and device."""
    batch, length, channels = x.shape
    before = x.new_zeros(batch, weight.shape[1] - 1, channels) if initial is None else initial
    padded = torch.cat([before, x], 1)
    y = torch.zeros_like(x)
    for k, weight_k in enumerate(weight.unbind(1)):
        y = y + weight_k * padded.narrow(1, k, length)
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = torch.nn.functional.silu(y)
    return y, padded.narrow(1, length, weight.shape[1] - 1)
