"""What a gated unit costs. A sigmoid is counted as an exponential, a sum and a division."""

from verim.ops.cost import Cost


def forward_cost(rows: int, hidden: int, element_bytes: int = 4) -> Cost:
    """Sigmoid and two products."""
    return Cost(flops=5 * rows * hidden, bytes=3 * rows * hidden * element_bytes)


def backward_cost(rows: int, hidden: int, element_bytes: int = 4) -> Cost:
    """The sigmoid is computed a second time; three products to each gradient, and 1 + gate (1 - sigmoid)."""
    size = rows * hidden
    return Cost(flops=8 * size, bytes=5 * size * element_bytes, recomputed_flops=3 * size)
