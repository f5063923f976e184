"""The feed-forward layers of RWKV: they look at the position before too, which is their state."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.feed_forward import FeedForward, matrix_flops
from verim.nn.linear import Linear
from verim.nn.state import TensorState
from verim.nn.token_shift import TokenShift, rising


@dataclass(frozen=True)
class ChannelMixState(TensorState):
    """The last input."""

    last: Float[Tensor, "batch width"]


@dataclass(frozen=True)
class RWKV4ChannelMixConfig:
    """`hidden` channels between (0: 4 · width, as in the published models)."""

    hidden: int = 0

    def __post_init__(self) -> None:
        _check(self.hidden)

    def build(self, width: int, index: int = 0, depth: int = 1) -> "RWKV4ChannelMix":
        return RWKV4ChannelMix(self, width, index, depth)


class RWKV4ChannelMix(FeedForward):
    """y_t = sigmoid(W_r r_t) ⊙ W_v relu(W_k k_t)², r and k mixes of x_t and x_{t-1}.

    Peng et al. 2023 (arXiv 2305.13048, eq. 14, 15, 18). The rows of `shift.mix` are μ_r and μ_k; they start as in the
    published code (BlinkDL/RWKV-LM, RWKV-v4/src/model.py).
    """

    def __init__(self, config: RWKV4ChannelMixConfig, width: int, index: int = 0, depth: int = 1) -> None:
        super().__init__()
        hidden = config.hidden or 4 * width
        self.shift = TokenShift((rising(width) ** (1 - index / depth)).repeat(2, 1))
        self.receptance = Linear(width, width, bias=False)
        self.key = Linear(width, hidden, bias=False)
        self.value = Linear(hidden, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: ChannelMixState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], ChannelMixState]:
        (of_receptance, of_key), last = self.shift(x, None if state is None else state.last)
        gate = torch.sigmoid(self.receptance(of_receptance))
        return gate * self.value(torch.relu(self.key(of_key)).square()), ChannelMixState(last)

    def state_bytes(self, batch: int, length: int) -> int:
        return batch * self.key.in_features * self.key.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        return matrix_flops(self)

    def writers(self) -> list[nn.Linear]:
        return [self.value]


@dataclass(frozen=True)
class RWKV7ChannelMixConfig:
    """`hidden` channels between (0: 4 · width, as in the published models)."""

    hidden: int = 0

    def __post_init__(self) -> None:
        _check(self.hidden)

    def build(self, width: int, index: int = 0, depth: int = 1) -> "RWKV7ChannelMix":
        return RWKV7ChannelMix(self, width, index, depth)


class RWKV7ChannelMix(FeedForward):
    """y_t = W_v relu(W_k k_t)², k a mix of x_t and x_{t-1}: RWKV-4's without the gate.

    Peng et al. 2025 (arXiv 2503.14456, section 4.2). The mix starts as in the published code (BlinkDL/RWKV-LM,
    RWKV-v7/train_temp/src/model.py), `x_k` = 1 - `shift.mix`.
    """

    def __init__(self, config: RWKV7ChannelMixConfig, width: int, index: int = 0, depth: int = 1) -> None:
        super().__init__()
        hidden = config.hidden or 4 * width
        self.shift = TokenShift(rising(width)[None] ** (1 - index / depth) ** 4)
        self.key = Linear(width, hidden, bias=False)
        self.value = Linear(hidden, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: ChannelMixState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], ChannelMixState]:
        (of_key,), last = self.shift(x, None if state is None else state.last)
        return self.value(torch.relu(self.key(of_key)).square()), ChannelMixState(last)

    def state_bytes(self, batch: int, length: int) -> int:
        return batch * self.key.in_features * self.key.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        return matrix_flops(self)

    def writers(self) -> list[nn.Linear]:
        return [self.value]


def _check(hidden: int) -> None:
    if hidden < 0:
        raise InputError(f"hidden: got {hidden}, expected 0 (4 · width) or more")
