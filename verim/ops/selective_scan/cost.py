"""What a selective scan costs."""

from verim.ops.cost import Cost


def forward_cost(batch: int, length: int, channels: int, state: int, element_bytes: int = 4) -> Cost:
    """For each state: delta A, its exponential, the recurrence's multiply-add, delta u B, and C's multiply-add."""
    cells = batch * length * channels
    flops = cells * (7 * state + 3)
    values = 3 * cells + 2 * batch * length * state + channels * (state + 1)
    return Cost(flops=flops, bytes=values * element_bytes)


def backward_cost(batch: int, length: int, channels: int, state: int, element_bytes: int = 4) -> Cost:
    """The adjoint recurrence and the gradients of u, delta, A, B and C; the states are computed a second time."""
    cells = batch * length * channels
    values = 5 * cells + 4 * batch * length * state + 2 * channels * (state + 1)
    return Cost(
        flops=cells * (14 * state + 6),
        bytes=values * element_bytes,
        recomputed_flops=cells * 5 * state,
    )
