"""What a causal convolution costs."""

from verim.ops.cost import Cost


def forward_cost(
    batch: int, length: int, channels: int, kernel: int, activation: str | None = None, element_bytes: int = 4
) -> Cost:
    """A multiply-add for each weight and position; SiLU is an exponential, an addition, a division, a product."""
    cells = batch * length * channels
    flops = cells * (2 * kernel + (4 if activation == "silu" else 0))
    return Cost(flops=flops, bytes=(2 * cells + channels * (kernel + 1)) * element_bytes)


def backward_cost(
    batch: int, length: int, channels: int, kernel: int, activation: str | None = None, element_bytes: int = 4
) -> Cost:
    """The gradients of the input and of the weights, a multiply-add each, and the bias's sum.

    For SiLU, g (s + z s (1 - s)) takes 5 more, and z and its sigmoid s are computed a second time.
    """
    cells = batch * length * channels
    silu = activation == "silu"
    return Cost(
        flops=cells * (4 * kernel + 1 + (5 if silu else 0)),
        bytes=(3 * cells + 2 * channels * (kernel + 1)) * element_bytes,
        recomputed_flops=cells * (2 * kernel + 3) if silu else 0,
    )
