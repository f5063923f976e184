"""What rotary positions cost."""

from verim.ops.cost import Cost


def forward_cost(positions: int, heads: int, head_dim: int, element_bytes: int = 4) -> Cost:
    """Four products and two sums a pair of channels; the tables are read once for all heads."""
    channels = positions * heads * head_dim
    return Cost(flops=3 * channels, bytes=(2 * channels + positions * head_dim) * element_bytes)


def backward_cost(positions: int, heads: int, head_dim: int, element_bytes: int = 4) -> Cost:
    """The rotation back."""
    return forward_cost(positions, heads, head_dim, element_bytes)
