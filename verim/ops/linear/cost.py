"""What a product with weights costs."""

from verim.ops.cost import Cost


def forward_cost(rows: int, inputs: int, outputs: int, element_bytes: int = 4) -> Cost:
    """A multiply-add for each row and weight; the weights are read once."""
    numbers = inputs * outputs + rows * (inputs + outputs)
    return Cost(flops=2 * rows * inputs * outputs, bytes=numbers * element_bytes)
