"""What a cross entropy costs."""

from verim.ops.cost import Cost


def forward_cost(rows: int, vocab: int, element_bytes: int = 4) -> Cost:
    """Loss and gradient in one pass: subtract the maximum, exponential, sum, times 1 / sum; 8 bytes a target."""
    return Cost(flops=4 * rows * vocab, bytes=2 * rows * vocab * element_bytes + 8 * rows)


def backward_cost(rows: int, vocab: int, element_bytes: int = 4) -> Cost:
    """One scaling of the kept gradient; nothing at all where the loss itself is what `backward` is called on."""
    return Cost(flops=rows * vocab, bytes=2 * rows * vocab * element_bytes)
