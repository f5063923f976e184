"""Feed-forward layers: they mix channels, one position at a time."""

from jaxtyping import Float
from torch import Tensor, nn

from verim import ops


class SwiGLU(nn.Module):
    """y = W_out (silu(W_gate x) ⊙ W_in x) (Shazeer 2020, arXiv 2002.05202, eq. 6), without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_in = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        return self.out(ops.swiglu(self.gate_and_in(x)))

    def flops(self) -> int:
        """Forward FLOPs a token: two for each weight."""
        return 2 * sum(weight.numel() for weight in self.parameters())
