"""What a linear recurrence costs."""

from verim.ops.cost import Cost

_COMPLEX_PRODUCT, _COMPLEX_SUM = 6, 2  # FLOPs


def forward_cost(batch: int, length: int, channels: int, is_complex: bool = False, element_bytes: int = 4) -> Cost:
    """A multiply-add for each position and channel."""
    cells = batch * length * channels
    flops = _COMPLEX_PRODUCT + _COMPLEX_SUM if is_complex else 2
    return Cost(flops=cells * flops, bytes=(3 * cells + 2 * batch * channels) * element_bytes)


def backward_cost(batch: int, length: int, channels: int, is_complex: bool = False, element_bytes: int = 4) -> Cost:
    """For each position and channel a multiply-add, the adjoint recurrence, and a product, the gradient of a."""
    cells = batch * length * channels
    flops = 2 * _COMPLEX_PRODUCT + _COMPLEX_SUM if is_complex else 3
    return Cost(flops=cells * flops, bytes=(5 * cells + 3 * batch * channels) * element_bytes)
