"""Which layers can be divided over ranks, and by what: what a configuration is checked against before anything runs."""

import math
from collections.abc import Callable
from typing import Any

from verim.nn import (
    GELUConfig,
    MixtureOfExpertsConfig,
    RWKV4ChannelMixConfig,
    RWKV7ChannelMixConfig,
    SwiGLUConfig,
)
from verim.nn.mixers import (
    AttentionConfig,
    GRUConfig,
    LSTMConfig,
    Mamba2Config,
    MambaConfig,
    MinGRUConfig,
    MinLSTMConfig,
    RNNConfig,
    RWKV4Config,
    RWKV7Config,
    S4DConfig,
)
from verim.nn.mixers.minimal import inner_width

Sizes = dict[str, int]
"""What must be a multiple of the tensor ranks, by the name of the field that decides it."""


def _attention(config: AttentionConfig, width: int) -> Sizes:
    return {"heads": config.heads, "kv_heads": config.kv_heads or config.heads}


def _mamba2(config: Mamba2Config, width: int) -> Sizes:
    heads = {"heads (expand · width / head_dim)": config.expand * width // config.head_dim}
    return heads if config.groups == 1 else heads | {"groups": config.groups}  # one group is kept by every rank


def _experts(config: MixtureOfExpertsConfig, width: int) -> Sizes:
    return {"hidden": config.hidden}  # so the shared experts' too


TENSOR: dict[type, Callable[[Any, int], Sizes]] = {
    AttentionConfig: _attention,
    MambaConfig: lambda config, width: {"expand · width": config.expand * width},
    Mamba2Config: _mamba2,
    RWKV4Config: lambda config, width: {"inner": config.inner or width},
    RWKV7Config: lambda config, width: {"heads (width / head_dim)": width // config.head_dim},
    MinGRUConfig: lambda config, width: {"expand · width": inner_width(config.expand, width)},
    MinLSTMConfig: lambda config, width: {"expand · width": inner_width(config.expand, width)},
    S4DConfig: lambda config, width: {"expand · width": config.expand * width},
    RNNConfig: lambda config, width: {},
    GRUConfig: lambda config, width: {},
    LSTMConfig: lambda config, width: {},
    SwiGLUConfig: lambda config, width: {"hidden": config.hidden},
    GELUConfig: lambda config, width: {"hidden": config.hidden},
    MixtureOfExpertsConfig: _experts,
    RWKV4ChannelMixConfig: lambda config, width: {"hidden": config.hidden or 4 * width},
    RWKV7ChannelMixConfig: lambda config, width: {"hidden": config.hidden or 4 * width},
}
"""Layers with a tensor plan (`verim.train.parallel.tensor`). Nothing to divide: every rank computes the whole layer."""

CONTEXT: dict[type, str] = {
    AttentionConfig: "by ring",
    **dict.fromkeys(
        (MambaConfig, Mamba2Config, S4DConfig, RWKV4Config, RWKV7Config, MinGRUConfig, MinLSTMConfig),
        "by the scan over ranks",
    ),
    **dict.fromkeys((RNNConfig, GRUConfig, LSTMConfig), "one rank after the other: memory is saved, not time"),
    **dict.fromkeys((SwiGLUConfig, GELUConfig, MixtureOfExpertsConfig), "position by position"),
    **dict.fromkeys((RWKV4ChannelMixConfig, RWKV7ChannelMixConfig), "position by position, with the one before"),
}
"""Layers whose sequences can lie on several ranks (`verim.train.parallel.context`), and how."""


def divisors(*sizes: int) -> list[int]:
    """Of all `sizes`."""
    common = math.gcd(*sizes)
    return [count for count in range(1, common + 1) if common % count == 0]
