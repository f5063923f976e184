"""Causal attention with rotary positions: many heads, grouped keys and values, a sliding window."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verim import ops
from verim.errors import InputError
from verim.nn.mixers.attention_state import AttentionState
from verim.nn.mixers.mixer import Mixer
from verim.ops.attention import cost


@dataclass(frozen=True)
class AttentionConfig:
    """`heads` heads of `head_dim` channels (0: width / heads), rotary frequencies `rotary_base`^(-2i / head_dim).

    - `kv_heads`: heads of keys and values, a divisor of `heads` (0: as many): each serves heads / kv_heads of them.
    - `window`: a position sees itself and the window - 1 before (0: all).
    - `bias`, `out_bias`: of the matrices that make queries, keys and values, and of the one behind.
    """

    heads: int
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    rotary_base: float = 10_000.0
    bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        for name, least in (("heads", 1), ("kv_heads", 0), ("head_dim", 0), ("window", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise InputError(f"kv_heads: got {self.kv_heads}, expected a divisor of heads, {self.heads}")
        if not self.rotary_base > 0:
            raise InputError(f"rotary_base: got {self.rotary_base}, expected more than 0")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "Attention":
        return Attention(self, width)


class Attention(Mixer):
    """softmax(Q Kᵀ / sqrt(head_dim) + causal mask) V (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    Queries and keys are rotated by their position (Su et al. 2021, arXiv 2104.09864, eq. 34, pairing channel i
    with i + head_dim / 2 as Llama does). Grouped-query attention: Ainslie et al. 2023 (arXiv 2305.13245, section
    2.2). Sliding window: Beltagy et al. 2020 (arXiv 2004.05150, section 3.1).
    """

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        if not config.head_dim and width % config.heads:
            raise InputError(f"heads: got {config.heads} for width {width}; expected a divisor of it, or head_dim")
        self.heads, self.head_dim = config.heads, config.head_dim or width // config.heads
        self.kv_heads, self.window = config.kv_heads or config.heads, config.window
        if self.head_dim % 2:
            raise InputError(
                f"heads: got {config.heads} for width {width}, {self.head_dim} channels a head; expected an even "
                "number of channels a head (rotary positions pair them): change heads, head_dim or width"
            )
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(width, inner + 2 * self.kv_heads * self.head_dim, bias=config.bias)
        self.out = nn.Linear(inner, width, bias=config.out_bias)
        self._rotation = Rotation(self.head_dim, config.rotary_base)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: AttentionState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], AttentionState]:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, self.heads + 2 * self.kv_heads, self.head_dim)
        mixed, state = self._begin(qkv) if state is None else self._continue(qkv, state)
        return self.out(mixed.reshape(batch, length, self.heads * self.head_dim)), state

    def _begin(self, qkv: Float[Tensor, "batch length all head_dim"]) -> tuple[Tensor, AttentionState]:
        batch, length = qkv.shape[:2]
        cosines, sines = self._rotation.tables(0, length, qkv)
        turned, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.kv_heads == self.heads and not self.window:
            mixed = ops.rotary_attention(qkv.view(batch, length, 3, self.heads, self.head_dim), cosines, sines)
            keys = turned[:, :, self.heads :]
            return mixed, AttentionState.begin(lambda: ops.rotary(keys, cosines, sines), values, self.window)
        queries, keys = ops.rotary(turned, cosines, sines).split([self.heads, self.kv_heads], dim=2)
        mixed = ops.attention(queries, keys, values, window=self.window or None)
        return mixed, AttentionState.begin(lambda: keys, values, self.window)

    def _continue(
        self, qkv: Float[Tensor, "batch length all head_dim"], state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        batch, length = qkv.shape[:2]
        turned, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if state.missing is None:
            turned = ops.rotary(turned, *self._rotation.tables(state.seen, state.seen + length, qkv))
        else:  # rows stand at different positions: all positions of all rows as one long row
            tables = self._rotation.rows(state.positions(length).flatten(), state.seen + length, qkv)
            turned = ops.rotary(turned.reshape(1, batch * length, -1, self.head_dim), *tables)
            turned = turned.view(batch, length, -1, self.head_dim)
        queries, keys = turned.split([self.heads, self.kv_heads], dim=2)
        state, keys, values = state.append(keys, values)
        # one query sees all that is held: no window needs to be asked for
        window = self.window if length > 1 else 0
        return ops.attention(queries, keys, values, window=window or None, bias=state.mask(keys.shape[1])), state

    def state_bytes(self, batch: int, length: int) -> int:
        held = min(length, self.window - 1) if self.window else length
        return 2 * batch * held * self.kv_heads * self.head_dim * self.qkv.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        weights = 2 * (self.qkv.weight.numel() + self.out.weight.numel())
        shape = (1, length, length, self.heads, self.head_dim)
        forward, backward = (
            part(*shape, causal=True, window=self.window).flops for part in (cost.forward_cost, cost.backward_cost)
        )
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

    def rows(self, positions: Int[Tensor, "rows"], last: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `positions`, all below `last`."""
        cosines, sines = self.tables(0, last, like)
        return cosines[positions], sines[positions]
