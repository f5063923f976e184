"""Causal multi-head attention with rotary positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.mixers.mixer import Mixer


@dataclass(frozen=True)
class AttentionConfig:
    """`heads` heads of width / heads channels; rotary frequencies `rotary_base`^(-2i / head_dim)."""

    heads: int
    rotary_base: float = 10_000.0

    def build(self, width: int) -> "Attention":
        return Attention(self, width)


@dataclass(frozen=True)
class AttentionState:
    """Rotated keys and values of the positions so far: `[batch, heads, length, head_dim]`."""

    keys: Float[Tensor, "batch heads length head_dim"]
    values: Float[Tensor, "batch heads length head_dim"]


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
        past = 0 if state is None else state.keys.shape[2]
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim)
        rotated = self._rotation(qkv[:, :, :2], past)
        queries, keys = rotated.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, length, head_dim]
        values = qkv[:, :, 2].transpose(1, 2)
        if state is not None:
            keys = torch.cat([state.keys, keys], dim=2)
            values = torch.cat([state.values, values], dim=2)
        if past == 0 or length == 1:  # one query sees all keys: no mask
            mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=past == 0)
        else:
            seen = torch.ones(length, past + length, dtype=torch.bool, device=x.device).tril(past)
            mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width)), AttentionState(keys, values)

    def state_bytes(self, batch: int, length: int) -> int:
        return 2 * batch * length * self.heads * self.head_dim * self.qkv.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        """The lower triangle alone: a query meets (length + 1) / 2 keys on average, in Q Kᵀ and again in P V."""
        weights = 2 * (self.qkv.weight.numel() + self.out.weight.numel())
        products = 2 * 2 * self.heads * self.head_dim * (length + 1) / 2
        return weights + products, 2 * (weights + products)


class Rotation:
    """Rotates pairs of channels by position · base^(-2i / head_dim); tables grow with the longest sequence seen."""

    def __init__(self, head_dim: int, base: float) -> None:
        self.frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        self.cosines = self.sines = torch.empty(0, head_dim // 2)

    def __call__(self, x: Float[Tensor, "batch length parts heads head_dim"], first: int) -> Tensor:
        last = first + x.shape[1]
        if len(self.cosines) < last or self.cosines.device != x.device or self.cosines.dtype != x.dtype:
            angles = torch.arange(max(last, 2 * len(self.cosines)), dtype=torch.float64)[:, None] * self.frequencies
            self.cosines, self.sines = angles.cos().to(x), angles.sin().to(x)
        cosines, sines = self.cosines[first:last, None, None], self.sines[first:last, None, None]
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cosines - right * sines, left * sines + right * cosines], dim=-1)
