"""What the weighted key-value costs."""

from verim.ops.cost import Cost


def forward_cost(batch: int, length: int, channels: int, element_bytes: int = 4) -> Cost:
    """For each position and channel 19 FLOPs, two of them exponentials.

    The weights of the past and of the present in the output 3 (u + k, their difference, its exponential), numerator
    3, denominator 2, their quotient 1; the weights in the state 3, the maximum 1, the decay of what it stands for 1,
    numerator 3 and denominator 2.
    """
    cells = batch * length * channels
    return Cost(flops=19 * cells, bytes=(3 * cells + 2 * channels) * element_bytes)


def backward_cost(batch: int, length: int, channels: int, element_bytes: int = 4) -> Cost:
    """The adjoint recurrence and the gradients of all inputs; the forward pass is computed a second time.

    For each position and channel 24 FLOPs: dy and y over the denominator's share 2, v - y 1, what goes to the present
    2, dv 2, dk 4, the state's two adjoints 6, dw 5, du 1, -w 1. Second time: all of the forward pass.
    """
    cells = batch * length * channels
    return Cost(
        flops=24 * cells,
        bytes=(5 * cells + 4 * channels) * element_bytes,
        recomputed_flops=19 * cells,
    )
