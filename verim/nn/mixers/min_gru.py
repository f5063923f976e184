"""minGRU: a GRU whose gate looks at the input alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verim.nn.mixers.minimal import Candidate, Minimal, check_minimal, inner_width


@dataclass(frozen=True)
class MinGRUConfig:
    """`expand` · width channels of state.

    - `candidate`: "positive", g(W x), as the version in logarithms of the paper's appendix B needs it, or "linear",
      W x (its section 3.1).
    - `kernel`: a causal convolution over so many inputs stands in front (0: none).
    """

    expand: float = 1.0
    candidate: Candidate = "positive"
    kernel: int = 0

    def __post_init__(self) -> None:
        check_minimal(self.expand, self.kernel, self.candidate)

    def build(self, width: int, index: int = 0, depth: int = 1) -> "MinGRU":
        return MinGRU(self, width)


class MinGRU(Minimal):
    """z_t = σ(W_z x_t), h_t = (1 - z_t) ⊙ h_{t-1} + z_t ⊙ candidate(W_h x_t), y = W_out h.

    Feng et al. 2024 (arXiv 2410.01201, section 3.1). The matrices have biases.
    """

    def __init__(self, config: MinGRUConfig, width: int) -> None:
        super().__init__(width, inner_width(config.expand, width), 2, config.kernel, config.candidate)

    def gates(
        self, logits: Float[Tensor, "batch length channels"]
    ) -> tuple[Float[Tensor, "batch length inner"], Float[Tensor, "batch length inner"]]:
        return torch.sigmoid(-logits), torch.sigmoid(logits)
