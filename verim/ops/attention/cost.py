"""What attention costs. Only the pairs of a query and a key that it may see count: for `causal` the lower triangle."""

from verim.ops.attention.visible import pairs
from verim.ops.cost import Cost


def forward_cost(
    batch: int,
    length: int,
    keys: int,
    heads: int,
    head_dim: int,
    causal: bool,
    element_bytes: int = 4,
    kv_heads: int | None = None,
    window: int = 0,
) -> Cost:
    """Q Kᵀ and P V; of a score: scale, subtract the maximum, exponential, sum. A number a query is kept.

    Biases and dropout, which some calls have, are not counted.
    """
    scores = batch * heads * pairs(length, keys, causal, window)
    channels = batch * head_dim * heads
    kv_channels = channels if kv_heads is None else batch * head_dim * kv_heads
    moved = (2 * channels * length + 2 * kv_channels * keys) * element_bytes + 4 * batch * heads * length
    return Cost(flops=scores * (4 * head_dim + 4) + channels * length, bytes=moved)


def backward_cost(
    batch: int,
    length: int,
    keys: int,
    heads: int,
    head_dim: int,
    causal: bool,
    element_bytes: int = 4,
    kv_heads: int | None = None,
    window: int = 0,
) -> Cost:
    """dV, dP, dQ, dK and the softmax's gradient; the scores and probabilities are computed a second time."""
    scores = batch * heads * pairs(length, keys, causal, window)
    channels = batch * head_dim * heads
    kv_channels = channels if kv_heads is None else batch * head_dim * kv_heads
    moved = (4 * channels * length + 4 * kv_channels * keys) * element_bytes + 4 * batch * heads * length
    return Cost(
        flops=scores * (8 * head_dim + 4),
        bytes=moved,
        recomputed_flops=scores * (2 * head_dim + 4),
    )
