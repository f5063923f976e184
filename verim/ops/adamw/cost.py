"""What an update costs."""

from verim.ops.cost import Cost


def update_cost(weights: int, element_bytes: int = 4) -> Cost:
    """Two moving averages (7), decay (2), root, correction, division and step (5), scale (1); four read, three written.

    The corrections of the moments are a division and a power a weight's tensor, which is nothing.
    """
    return Cost(flops=15 * weights, bytes=7 * weights * element_bytes)


def norm_cost(weights: int, element_bytes: int = 4) -> Cost:
    """A multiply-add a weight."""
    return Cost(flops=2 * weights, bytes=weights * element_bytes)
