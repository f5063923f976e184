"""What attention costs. With `causal` only the lower triangle counts (length = keys)."""

from verim.ops.cost import Cost


def _pairs(length: int, keys: int, causal: bool) -> int:
    """How many pairs of a query and a key that it sees."""
    return length * (keys - length) + length * (length + 1) // 2 if causal else length * keys


def forward_cost(
    batch: int, length: int, keys: int, heads: int, head_dim: int, causal: bool, element_bytes: int = 4
) -> Cost:
    """Q Kᵀ and P V; of a score: scale, subtract the maximum, exponential, sum. Two numbers a query are kept."""
    pairs = batch * heads * _pairs(length, keys, causal)
    channels = batch * heads * head_dim
    moved = channels * (2 * length + 2 * keys) + 2 * batch * heads * length
    return Cost(flops=pairs * (4 * head_dim + 4) + channels * length, bytes=moved * element_bytes)


def backward_cost(
    batch: int, length: int, keys: int, heads: int, head_dim: int, causal: bool, element_bytes: int = 4
) -> Cost:
    """dV, dP, dQ, dK and the softmax's gradient; the scores and probabilities are computed a second time."""
    pairs = batch * heads * _pairs(length, keys, causal)
    channels = batch * heads * head_dim
    moved = channels * (3 * length + 4 * keys) + 2 * batch * heads * length
    return Cost(
        flops=pairs * (8 * head_dim + 4),
        bytes=moved * element_bytes,
        recomputed_flops=pairs * (2 * head_dim + 4),
    )
