"""What Mamba-2's state-space layer costs, counted as the recurrence: what the chunks add is an implementation's."""

from verim.ops.cost import Cost


def forward_cost(
    batch: int, length: int, heads: int, head_dim: int, groups: int, state: int, element_bytes: int = 4
) -> Cost:
    """For each entry of each head's state and position 5 FLOPs: its decay, what is written to it, what is read.

    For each channel delta x and D x besides, 3; for each head the decay, 2.
    """
    steps = batch * length
    return Cost(
        flops=steps * heads * (head_dim * (5 * state + 3) + 2),
        bytes=steps * (heads * (2 * head_dim + 1) + 2 * groups * state) * element_bytes,
    )


def backward_cost(
    batch: int, length: int, heads: int, head_dim: int, groups: int, state: int, element_bytes: int = 4
) -> Cost:
    """The adjoint recurrence and the gradients of all inputs; the states are computed a second time.

    For each entry of the state 11 FLOPs: what comes from the output 2, its decay 1, into B, C, x and the decay 2 each.
    For each channel 8 (into x, delta, and through D), for each head 4 (into delta and A). Second time: decay, write.
    """
    steps = batch * length
    return Cost(
        flops=steps * heads * (head_dim * (11 * state + 8) + 4),
        bytes=steps * (heads * (3 * head_dim + 2) + 4 * groups * state) * element_bytes,
        recomputed_flops=steps * heads * (head_dim * (3 * state + 1) + 2),
    )
