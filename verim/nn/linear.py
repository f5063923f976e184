"""The matrices of all layers."""

from jaxtyping import Float
from torch import Tensor, nn

from verim import ops


class Linear(nn.Linear):
    """torch's layer, whose product with a few rows, as decoding has them, is `verim.ops.linear`."""

    def forward(self, input: Float[Tensor, "*rest inputs"]) -> Float[Tensor, "*rest outputs"]:
        return ops.linear(input, self.weight, self.bias)
