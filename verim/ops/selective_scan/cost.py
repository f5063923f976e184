"""What a selective scan costs."""

from verim.ops.cost import Cost


def forward_cost(batch: int, length: int, channels: int, state: int, element_bytes: int = 4) -> Cost:
    """For each entry of the state 7 FLOPs: delta A, its exponential, delta u B, and two multiply-adds, h and C h.

    For each position and channel 3 more: delta u, and the multiply-add D u.
    """
    cells = batch * length * channels
    values = 3 * cells + 2 * batch * length * state + channels * (state + 1)
    return Cost(flops=cells * (7 * state + 3), bytes=values * element_bytes)


def backward_cost(batch: int, length: int, channels: int, state: int, element_bytes: int = 4) -> Cost:
    """The adjoint recurrence and the gradients of all six inputs; the states are computed a second time.

    For each entry of the state 14 FLOPs: two products (c, c h) and six multiply-adds (g, dA, dB, dC, and the sums
    in du and ddelta). For each position and channel 7: du 3, ddelta 2, dD 2. Second time: 5 for each entry (all of
    the forward pass but C h), and delta u.
    """
    cells = batch * length * channels
    values = 5 * cells + 4 * batch * length * state + 2 * channels * (state + 1)
    return Cost(
        flops=cells * (14 * state + 7),
        bytes=values * element_bytes,
        recomputed_flops=cells * (5 * state + 1),
    )
