"""What a causal convolution costs."""

from verim.ops.cost import Cost


def forward_cost(batch: int, length: int, channels: int, kernel: int, element_bytes: int = 4) -> Cost:
    """A multiply-add for each weight and position."""
    cells = batch * length * channels
    return Cost(flops=2 * kernel * cells, bytes=(2 * cells + channels * (kernel + 1)) * element_bytes)


def backward_cost(batch: int, length: int, channels: int, kernel: int, element_bytes: int = 4) -> Cost:
    """The gradients of the input and of the weights, a multiply-add each."""
    cells = batch * length * channels
    return Cost(flops=4 * kernel * cells, bytes=(3 * cells + 2 * channels * (kernel + 1)) * element_bytes)
