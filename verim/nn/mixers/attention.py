"""Causal multi-head attention with rotary positions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim import ops
from verim.errors import InputError
from verim.nn.mixers.mixer import Mixer
from verim.ops.attention import cost

Heads = Float[Tensor, "batch length heads head_dim"]


@dataclass(frozen=True)
class AttentionConfig:
    """`heads` heads of width / heads channels; rotary frequencies `rotary_base`^(-2i / head_dim)."""

    heads: int
    rotary_base: float = 10_000.0

    def build(self, width: int) -> "Attention":
        return Attention(self, width)


class AttentionState:
    """Rotated keys, and values, of the positions so far: `[batch, length, heads, head_dim]`.

    The keys of a sequence's first chunk are rotated when they are first asked for: training never asks.
    """

    def __init__(self, values: Heads, rotate: Callable[[], Heads]) -> None:
        self.values = values
        self._rotate = rotate

    @cached_property
    def keys(self) -> Heads:
        return self._rotate()

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class Attention(Mixer):
    """softmax(Q Kᵀ / sqrt(head_dim) + causal mask) V (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    Queries and keys are rotated by their position (Su et al. 2021, arXiv 2104.09864, eq. 34, pairing channel i
    with i + head_dim / 2 as Llama does).
    """

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        if config.heads < 1 or width % config.heads or (width // config.heads) % 2:
            raise InputError(
                f"heads: got {config.heads} for width {width}; expected a divisor of the width that leaves an even "
                "number of channels a head (rotary positions pair them): change heads or width"
            )
        self.heads, self.head_dim = config.heads, width // config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self._rotation = Rotation(self.head_dim, config.rotary_base)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: AttentionState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], AttentionState]:
        batch, length, width = x.shape
        past = 0 if state is None else state.values.shape[1]
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim)
        cosines, sines = self._rotation.tables(past, past + length, x)
        if state is None:
            mixed = ops.rotary_attention(qkv, cosines, sines)
            after = AttentionState(qkv[:, :, 2], lambda: ops.rotary(qkv[:, :, 1], cosines, sines))
        else:
            queries, keys = ops.rotary(qkv[:, :, :2], cosines, sines).unbind(2)
            keys, values = torch.cat([state.keys, keys], dim=1), torch.cat([state.values, qkv[:, :, 2]], dim=1)
            mixed = ops.attention(queries, keys, values)
            after = AttentionState(values, lambda: keys)
        return self.out(mixed.reshape(batch, length, width)), after

    def state_bytes(self, batch: int, length: int) -> int:
        return 2 * batch * length * self.heads * self.head_dim * self.qkv.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        weights = 2 * (self.qkv.weight.numel() + self.out.weight.numel())
        shape = (1, length, length, self.heads, self.head_dim)
        forward, backward = (part(*shape, causal=True).flops for part in (cost.forward_cost, cost.backward_cost))
        return weights + forward / length, 2 * weights + backward / length


class Rotation:
    """Cosines and sines of position · base^(-2i / head_dim); the tables grow with the longest sequence seen."""

    def __init__(self, head_dim: int, base: float) -> None:
        self.frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        self.cosines = self.sines = torch.empty(0, head_dim // 2)

    def tables(self, first: int, last: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of positions `first` to `last` - 1, with the device and data type of `like`."""
        if len(self.cosines) < last or self.cosines.device != like.device or self.cosines.dtype != like.dtype:
            angles = torch.arange(max(last, 2 * len(self.cosines)), dtype=torch.float64)[:, None] * self.frequencies
            self.cosines, self.sines = angles.cos().to(like), angles.sin().to(like)
        return self.cosines[first:last], self.sines[first:last]
