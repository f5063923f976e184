"""minLSTM: an LSTM whose gates look at the input alone."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.mixers.minimal import Candidate, Minimal, check_minimal, inner_width


@dataclass(frozen=True)
class MinLSTMConfig:
    """`expand` · width channels of state.

    - `candidate`: "positive", g(W x), as the version in logarithms of the paper's appendix B needs it, or "linear",
      W x (its section 3.2).
    - `kernel`: a causal convolution over so many inputs stands in front (0: none).
    - `forget_bias`: where the bias of the forget gate starts.
    """

    expand: float = 1.0
    candidate: Candidate = "positive"
    kernel: int = 0
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        check_minimal(self.expand, self.kernel, self.candidate)
        if not math.isfinite(self.forget_bias):
            raise InputError(f"forget_bias: got {self.forget_bias}, expected a finite number")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "MinLSTM":
        return MinLSTM(self, width)


class MinLSTM(Minimal):
    """f_t = σ(W_f x_t), i_t = σ(W_i x_t), both over their sum f' and i'; y = W_out h with

        h_t = f'_t ⊙ h_{t-1} + i'_t ⊙ candidate(W_h x_t)

    Feng et al. 2024 (arXiv 2410.01201, section 3.2: the version whose scale does not depend on time). The matrices
    have biases. f / (f + i) = σ(log f - log i), which stays exact where both gates are closed.
    """

    def __init__(self, config: MinLSTMConfig, width: int) -> None:
        super().__init__(width, inner_width(config.expand, width), 3, config.kernel, config.candidate)
        with torch.no_grad():
            self.into.bias[: self.inner] = config.forget_bias

    def gates(
        self, logits: Float[Tensor, "batch length channels"]
    ) -> tuple[Float[Tensor, "batch length inner"], Float[Tensor, "batch length inner"]]:
        forget, take = nn.functional.logsigmoid(logits).chunk(2, dim=-1)
        return torch.sigmoid(forget - take), torch.sigmoid(take - forget)
