"""How each kind of layer is divided over tensor ranks: which weights, along which axis, and where ranks exchange.

A layer's first matrices are divided by rows (outputs), its last by columns (inputs), and everything between by heads or
channels, so that a rank computes its heads or channels alone and the ranks' outputs add up to the layer's (Shoeybi et
al. 2019, arXiv 1909.08053, section 3): one all-reduce forward, one backward. Mamba has one more, of rank + 2 · state
numbers a token, for Δ, B and C are made of all channels; so has Mamba-2 with one group, of one number a token, for its
norm; with as many groups as ranks it has not (Dao & Gu 2024, arXiv 2405.21060, section 8.1). A mixture of experts is
divided inside each expert. RNN, GRU and LSTM are not divided: each step needs the whole state of the step before, which
would be an exchange a position.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from verim.nn import GELU, MixtureOfExperts, RWKV4ChannelMix, RWKV7ChannelMix, SwiGLU
from verim.nn.mixers import GRU, LSTM, RNN, RWKV4, RWKV7, S4D, Attention, Mamba, Mamba2, MinGRU, MinLSTM


@dataclass(frozen=True)
class Cut:
    """The axis `dim` of a weight consists of `parts` of these sizes. Each is divided evenly over the ranks, but those
    numbered in `whole`, which every rank keeps: their gradients are sums over the ranks."""

    dim: int
    parts: tuple[int, ...]
    whole: frozenset[int] = frozenset()

    def ranges(self, rank: int, ranks: int) -> list[tuple[int, int]]:
        """What `rank` of `ranks` keeps of the axis, in this order."""
        kept, start = [], 0
        for number, size in enumerate(self.parts):
            own = size if number in self.whole else size // ranks
            first = start if number in self.whole else start + rank * own
            kept.append((first, first + own))
            start += size
        return kept

    def shared(self, ranks: int) -> list[tuple[int, int]]:
        """Which range of its slice a rank shares with all the others."""
        kept, start = [], 0
        for number, size in enumerate(self.parts):
            own = size if number in self.whole else size // ranks
            if number in self.whole:
                kept.append((start, start + own))
            start += own
        return kept


@dataclass(frozen=True)
class Plan:
    """- `cuts`: of weights, by their name in the layer; all others are whole on every rank.
    - `partial`: whole weights of which a rank uses what concerns its channels: gradients are summed.
    - `once`: biases added to the sum of the ranks' outputs, of which each adds its share.
    - `enters`, `leaves`: modules of the layer before which all ranks hold the same, and whose results are summed; ""
      is the layer itself. `totals`: modules whose results are summed and used by each rank for its own channels.
    - `sizes`: attributes of the layer that count what is divided.
    - `layers`: layers inside with a plan of their own.
    - `norm_over_ranks`: Mamba-2's norm is over channels of all ranks.
    """

    cuts: dict[str, Cut] = field(default_factory=dict)
    partial: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    enters: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    totals: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    norm_over_ranks: bool = False


WHOLE = ("",)


def _rows(names: str, *parts: int, whole: frozenset[int] = frozenset()) -> dict[str, Cut]:
    return {name: Cut(0, parts, whole) for name in names.split()}


def _attention(layer: Attention) -> Plan:
    queries, keys = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
    return Plan(
        _rows("qkv.weight qkv.bias", queries, keys, keys) | {"out.weight": Cut(1, (queries,))},
        once=("out.bias",),
        enters=WHOLE,
        leaves=WHOLE,
        sizes=("heads", "kv_heads"),
    )


def _mamba(layer: Mamba) -> Plan:
    inner = layer.inner
    return Plan(
        _rows("into.weight into.bias", inner, inner)
        | _rows("convolution convolution_bias delta.weight delta.bias log_decay skip", inner)
        | {"select.weight": Cut(1, (inner,)), "out.weight": Cut(1, (inner,))},
        once=("out.bias",),
        enters=WHOLE,
        leaves=WHOLE,
        totals=("select",),
        sizes=("inner",),
    )


def _mamba2(layer: Mamba2) -> Plan:
    inner, heads, shared = layer.inner, layer.heads, layer.groups * layer.state
    one = layer.groups == 1
    return Plan(
        _rows("into.weight into.bias", inner, inner, shared, shared, heads, whole=frozenset((2, 3) if one else ()))
        | _rows("convolution convolution_bias", inner, shared, shared, whole=frozenset((1, 2) if one else ()))
        | _rows("log_decay skip delta_bias", heads)
        | _rows("gain", inner)
        | {"out.weight": Cut(1, (inner,))},
        once=("out.bias",),
        enters=WHOLE,
        leaves=WHOLE,
        sizes=("inner", "heads") if one else ("inner", "heads", "groups"),
        norm_over_ranks=one,
    )


def _rwkv4(layer: RWKV4) -> Plan:
    inner = layer.key.out_features
    return Plan(
        _rows("receptance.weight key.weight value.weight log_decay bonus", inner) | {"out.weight": Cut(1, (inner,))},
        partial=("shift.mix",),
        enters=WHOLE,
        leaves=WHOLE,
    )


def _rwkv7(layer: RWKV7) -> Plan:
    width = layer.heads * layer.head_dim
    makers = "decay.up.weight decay.up.bias rate.up.weight rate.up.bias gate.up.weight"
    vectors = "removal_scale rate_scale norm.weight norm.bias"
    return Plan(
        _rows(f"receptance.weight key.weight value.weight {makers} {vectors}", width)
        | _rows("bonus", layer.heads)
        | {"out.weight": Cut(1, (width,))},
        partial=("shift.mix", "decay.down.weight", "rate.down.weight", "gate.down.weight"),
        enters=WHOLE,
        leaves=WHOLE,
        sizes=("heads", "norm.num_groups", "norm.num_channels"),
    )


def _minimal(layer: MinGRU | MinLSTM) -> Plan:
    maps = layer.into.out_features // layer.inner
    return Plan(
        _rows("into.weight into.bias", *[layer.inner] * maps) | {"out.weight": Cut(1, (layer.inner,))},
        partial=("convolution", "convolution_bias"),
        enters=WHOLE,
        leaves=WHOLE,
        sizes=("inner",),
    )


def _s4d(layer: S4D) -> Plan:
    inner = layer.inner
    channels = "convolution convolution_bias log_delta log_decay frequency B C skip"
    return Plan(
        _rows("into.weight", inner, inner) | _rows(channels, inner) | {"out.weight": Cut(1, (inner,))},
        enters=WHOLE,
        leaves=WHOLE,
        sizes=("inner",),
    )


def _swiglu(layer: SwiGLU) -> Plan:
    hidden = layer.out.in_features
    return Plan(
        _rows("gate_and_in.weight gate_and_in.bias", hidden, hidden) | {"out.weight": Cut(1, (hidden,))},
        once=("out.bias",),
        enters=WHOLE,
        leaves=WHOLE,
    )


def _gelu(layer: GELU) -> Plan:
    hidden = layer.out.in_features
    return Plan(
        _rows("into.weight into.bias", hidden) | {"out.weight": Cut(1, (hidden,))},
        once=("out.bias",),
        enters=WHOLE,
        leaves=WHOLE,
    )


def _experts(layer: MixtureOfExperts) -> Plan:
    hidden = layer.config.hidden
    return Plan(
        {"gate_and_in.weight": Cut(1, (hidden, hidden)), "out.weight": Cut(2, (hidden,))},
        layers=() if layer.shared is None else ("shared",),
    )


def _rwkv4_channel_mix(layer: RWKV4ChannelMix) -> Plan:
    """What `key` and `value` make is gated by all ranks alike."""
    hidden = layer.key.out_features
    return Plan(_rows("key.weight", hidden) | {"value.weight": Cut(1, (hidden,))}, enters=("key",), leaves=("value",))


def _rwkv7_channel_mix(layer: RWKV7ChannelMix) -> Plan:
    hidden = layer.key.out_features
    return Plan(
        _rows("key.weight", hidden) | {"value.weight": Cut(1, (hidden,))},
        partial=("shift.mix",),
        enters=WHOLE,
        leaves=WHOLE,
    )


def _undivided(layer: Any) -> Plan:
    return Plan()


PLANS: dict[type, Callable[[Any], Plan]] = {
    Attention: _attention,
    Mamba: _mamba,
    Mamba2: _mamba2,
    RWKV4: _rwkv4,
    RWKV7: _rwkv7,
    RNN: _undivided,
    GRU: _undivided,
    LSTM: _undivided,
    MinGRU: _minimal,
    MinLSTM: _minimal,
    S4D: _s4d,
    SwiGLU: _swiglu,
    GELU: _gelu,
    MixtureOfExperts: _experts,
    RWKV4ChannelMix: _rwkv4_channel_mix,
    RWKV7ChannelMix: _rwkv7_channel_mix,
}
"""The plan of a whole layer; `verim.train.parallel.splits` says what its sizes must be multiples of."""
