"""Causal attention with rotary positions: many heads, grouped keys and values, a sliding window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim import ops
from verim.errors import InputError
from verim.nn.along import HERE, Along
from verim.nn.linear import Linear
from verim.nn.mixers.attention_state import AttentionState
from verim.nn.mixers.mixer import Mixer
from verim.nn.mixers.paged_state import PagedState
from verim.ops.attention import cost
from verim.ops.derivatives import is_recorded


@dataclass(frozen=True)
class AttentionConfig:
    """`heads` heads of `head_dim` channels (0: width / heads), rotary frequencies `rotary_base`^(-2i / head_dim).

    - `kv_heads`: heads of keys and values, a divisor of `heads` (0: as many): each serves heads / kv_heads of them.
    - `window`: a position sees itself and the window - 1 before (0: all).
    - `bias`, `out_bias`: of the matrices that make queries, keys and values, and of the one behind.
    - `rotary_factor`: slow frequencies are divided by it, for sequences that much longer; which are slow say
      `rotary_context` (the length trained at first; 0: all are slow), `rotary_low`, `rotary_high`: see `frequencies`.
    """

    heads: int
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    rotary_base: float = 10_000.0
    rotary_factor: float = 1.0
    rotary_context: int = 0
    rotary_low: float = 1.0
    rotary_high: float = 4.0
    bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        for name, least in (("heads", 1), ("kv_heads", 0), ("head_dim", 0), ("window", 0), ("rotary_context", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise InputError(f"kv_heads: got {self.kv_heads}, expected a divisor of heads, {self.heads}")
        for name in ("rotary_base", "rotary_factor", "rotary_low"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: got {getattr(self, name)}, expected more than 0")
        if not self.rotary_high > self.rotary_low:
            raise InputError(f"rotary_high: got {self.rotary_high}, expected more than rotary_low, {self.rotary_low}")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "Attention":
        return Attention(self, width)


class Attention(Mixer):
    """softmax(Q Kᵀ / sqrt(head_dim) + causal mask) V (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    Queries and keys are rotated by their position (Su et al. 2021, arXiv 2104.09864, eq. 34, pairing channel i
    with i + head_dim / 2 as Llama does). Grouped-query attention: Ainslie et al. 2023 (arXiv 2305.13245, section
    2.2). Sliding window: Beltagy et al. 2020 (arXiv 2004.05150, section 3.1).
    """

    along: Along = HERE

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
        self.qkv = Linear(width, inner + 2 * self.kv_heads * self.head_dim, bias=config.bias)
        self.out = Linear(inner, width, bias=config.out_bias)
        self._rotation = Rotation(frequencies(config, self.head_dim))

    def forward(
        self, x: Float[Tensor, "batch length width"], state: AttentionState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], AttentionState]:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, self.heads + 2 * self.kv_heads, self.head_dim)
        mixed, state = self._begin(qkv) if state is None else self._continue(qkv, state)
        return self.out(mixed.reshape(batch, length, self.heads * self.head_dim)), state

    def _begin(self, qkv: Float[Tensor, "batch length all head_dim"]) -> tuple[Tensor, AttentionState]:
        batch, length = qkv.shape[:2]
        cosines, sines = self._rotation.spans(self.along.positions(length), qkv)
        turned, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.kv_heads == self.heads and not self.window:
            mixed = self.along.rotary_attention(qkv.view(batch, length, 3, self.heads, self.head_dim), cosines, sines)
            keys = turned[:, :, self.heads :]
            return mixed, AttentionState.begin(lambda: ops.rotary(keys, cosines, sines), values, self.window)
        queries, keys = ops.rotary(turned, cosines, sines).split([self.heads, self.kv_heads], dim=2)
        mixed = self.along.attention(queries, keys, values, window=self.window or None)
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
        padding = state.padding(keys.shape[1])
        return ops.attention(queries, keys, values, window=window or None, padding=padding), state

    def routed(
        self, x: Float[Tensor, "rows length width"], state: PagedState | None, positions: Int[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows length width"], PagedState]:
        """Attention among the tokens that come to it; distances are those of the whole sequence, by `positions`."""
        rows, length, _ = x.shape
        qkv = self.qkv(x).view(rows, length, self.heads + 2 * self.kv_heads, self.head_dim)
        turned, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        queries, keys = self._turned(turned, positions).split([self.heads, self.kv_heads], dim=2)
        if state is None:
            state, mixed = PagedState.begin(lambda: keys, values), ops.attention(queries, keys, values)
        else:
            state = state.append(keys, values)
            if length == 1:
                mixed = ops.paged_attention(queries, state.pool.keys, state.pool.values, state.table(), state.counts())
            else:
                keys, values, padding = state.whole()
                mixed = ops.attention(queries, keys, values, padding=padding)
        return self.out(mixed.reshape(rows, length, self.heads * self.head_dim)), state

    def reading(
        self, x: Float[Tensor, "rows length width"], held: PagedState, positions: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length width"]:
        """`routed`, with the keys and values that `held` has of all positions up to those of `x`, and none of `x`."""
        rows, length, _ = x.shape
        inner = self.heads * self.head_dim
        bias = None if self.qkv.bias is None else self.qkv.bias[:inner]
        queries = ops.linear(x, self.qkv.weight[:inner], bias).view(rows, length, self.heads, self.head_dim)
        queries = self._turned(queries, positions)
        if length == 1 and not is_recorded(queries):
            counts = positions[:, 0] + 1
            mixed = ops.paged_attention(queries, held.pool.keys, held.pool.values, held.table(), counts)
        else:
            keys, values, padding = held.whole()
            columns = torch.arange(keys.shape[1], device=x.device)
            ends = positions if padding is None else positions + padding[:, None]
            seen = columns <= ends[:, None, :, None]
            mixed = ops.attention(queries, keys, values, causal=False, bias=seen, padding=padding)
        return self.out(mixed.reshape(rows, length, inner))

    def _turned(
        self, heads: Float[Tensor, "rows length some head_dim"], positions: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length some head_dim"]:
        """Rotated by `positions`: all of all rows as one long row."""
        tables = self._rotation.rows(positions.flatten(), int(positions.max()) + 1, heads)
        return ops.rotary(heads.reshape(1, -1, *heads.shape[2:]), *tables).view(heads.shape)

    def routing_obstacle(self) -> str:
        return f"window: got {self.window}, expected 0" if self.window else ""

    def reading_flops(self, length: int) -> tuple[float, float]:
        """Of `reading`, as `flops`: without the products that make keys and values."""
        forward, backward = self.flops(length)
        saved = 4 * self.kv_heads * self.head_dim * self.qkv.in_features
        return forward - saved, backward - 2 * saved

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


def frequencies(config: AttentionConfig, head_dim: int) -> Float[Tensor, "half_head_dim"]:
    """Angles a position, base^(-2i / head_dim), the slow ones divided by `rotary_factor`.

    With `rotary_context` = 0 all are slow: linear position interpolation (Chen et al. 2023, arXiv 2306.15595, eq. 4).
    Else those that turn less than `rotary_low` times in `rotary_context` positions are, those that turn `rotary_high`
    times or more stay, and between them 1/factor and 1 are blended linearly in the turns, the "by parts" of YaRN
    (Peng et al. 2023, arXiv 2309.00071, eq. 11-13) as Llama 3.1 does it.
    """
    # on the CPU also where a model is made on the meta device, to be given its weights later
    plain = config.rotary_base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    turns = config.rotary_context * plain / (2 * math.pi)
    kept = ((turns - config.rotary_low) / (config.rotary_high - config.rotary_low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / config.rotary_factor)


class Rotation:
    """Cosines and sines of position · frequency; the tables grow with the longest sequence seen."""

    def __init__(self, frequencies: Float[Tensor, "half_head_dim"]) -> None:
        self.frequencies = frequencies
        self.cosines = self.sines = torch.empty(0, len(frequencies))

    def tables(self, first: int, last: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of positions `first` to `last` - 1, with the device and data type of `like`."""
        if len(self.cosines) < last or self.cosines.device != like.device or self.cosines.dtype != like.dtype:
            angles = torch.arange(max(last, 2 * len(self.cosines)), dtype=torch.float64)[:, None] * self.frequencies
            self.cosines, self.sines = angles.cos().to(like), angles.sin().to(like)
        return self.cosines[first:last], self.sines[first:last]

    def spans(self, spans: Sequence[range], like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of all positions of `spans`, in their order."""
        tables = [self.tables(span.start, span.stop, like) for span in spans]
        if len(tables) == 1:
            return tables[0]
        cosines, sines = (torch.cat(parts) for parts in zip(*tables, strict=True))
        return cosines, sines

    def rows(self, positions: Int[Tensor, "rows"], last: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `positions`, all below `last`."""
        cosines, sines = self.tables(0, last, like)
        return cosines[positions], sines[positions]
