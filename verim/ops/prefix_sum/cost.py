"""What a prefix sum costs."""

from verim.ops.cost import Cost


def forward_cost(elements: int, element_bytes: int = 4, result_bytes: int = 4) -> Cost:
    """One addition an element. The gradient is the scan from the other end, at the same cost."""
    return Cost(flops=elements, bytes=elements * (element_bytes + result_bytes))
