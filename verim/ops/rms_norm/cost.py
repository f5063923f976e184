"""What a root-mean-square norm costs."""

from verim.ops.cost import Cost


def forward_cost(rows: int, width: int, element_bytes: int = 4) -> Cost:
    """Square and sum, then twice a product; the reciprocal root of each row is kept."""
    return Cost(flops=4 * rows * width + 3 * rows, bytes=(2 * rows * width + width + rows) * element_bytes)


def backward_cost(rows: int, width: int, element_bytes: int = 4) -> Cost:
    """x r, its product with the gradient (into dgain, and times gain into a sum), then dx."""
    return Cost(flops=8 * rows * width + 3 * rows, bytes=(3 * rows * width + 2 * width + rows) * element_bytes)
