"""What a linear cross entropy costs."""

from verim.ops.cost import Cost


def forward_cost(rows: int, width: int, vocab: int, element_bytes: int = 4) -> Cost:
    """The logits, a multiply-add for each entry of a row and of the vocabulary; their exponentials; 8 bytes a target.

    For each logit 3 FLOPs more: subtract the maximum, exponential, sum.
    """
    logits = rows * vocab
    values = rows * width + vocab * width
    return Cost(flops=logits * (2 * width + 3), bytes=values * element_bytes + 20 * rows)


def backward_cost(rows: int, width: int, vocab: int, element_bytes: int = 4) -> Cost:
    """Two products of the size of the logits' own, which is computed a second time; the weight counts twice in bytes.

    For each logit 1 FLOP more, softmax times the gradient of the loss; and 2 of the forward pass again.
    """
    logits = rows * vocab
    values = 2 * rows * width + 2 * vocab * width
    return Cost(
        flops=logits * (4 * width + 1),
        bytes=values * element_bytes + 20 * rows,
        recomputed_flops=logits * (2 * width + 2),
    )


def gradients_cost(rows: int, width: int, vocab: int, element_bytes: int = 4) -> Cost:
    """Loss and gradients at once: what both passes need, and nothing a second time."""
    logits = rows * vocab
    values = 2 * rows * width + 2 * vocab * width
    return Cost(flops=logits * (6 * width + 4), bytes=values * element_bytes + 16 * rows)
