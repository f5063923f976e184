"""What RWKV-7's state evolution costs."""

from verim.ops.cost import Cost


def forward_cost(batch: int, length: int, heads: int, head_dim: int, element_bytes: int = 4) -> Cost:
    """For each position and entry of the state 9 FLOPs: a S 2, w S 1, b (a S) 2, k v 2, r S 2."""
    cells = batch * length * heads * head_dim
    return Cost(flops=9 * cells * head_dim, bytes=7 * cells * element_bytes)


def backward_cost(batch: int, length: int, heads: int, head_dim: int, element_bytes: int = 4) -> Cost:
    """The adjoint recurrence and the gradients of all inputs; the states are computed a second time.

    For each position and entry of the state 19 FLOPs: the state's gradient 5 (from y 2, through w 1, through a 2), and
    2 each for r, w, k, v, a, b and for what comes back through a S. Second time: the forward pass but a S, which is
    kept, and y.
    """
    cells = batch * length * heads * head_dim
    return Cost(
        flops=19 * cells * head_dim,
        bytes=13 * cells * element_bytes,
        recomputed_flops=5 * cells * head_dim,
    )
