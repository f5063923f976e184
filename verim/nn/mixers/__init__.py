"""Mixers: layers that mix along the sequence, all behind one call."""

from verim.nn.mixers.attention import Attention, AttentionConfig
from verim.nn.mixers.attention_state import AttentionState
from verim.nn.mixers.mamba import Mamba, MambaConfig, MambaState
from verim.nn.mixers.mamba2 import Mamba2, Mamba2Config, Mamba2State
from verim.nn.mixers.mixer import Mixer
from verim.nn.mixers.rwkv4 import RWKV4, RWKV4Config, RWKV4State
from verim.nn.mixers.rwkv7 import RWKV7, RWKV7Config, RWKV7State

MIXERS: dict[str, type] = {
    "attention": AttentionConfig,
    "mamba": MambaConfig,
    "mamba2": Mamba2Config,
    "rwkv4": RWKV4Config,
    "rwkv7": RWKV7Config,
}
"""The kinds of mixers, by their name in a configuration."""

__all__ = [
    "MIXERS",
    "RWKV4",
    "RWKV7",
    "Attention",
    "AttentionConfig",
    "AttentionState",
    "Mamba",
    "Mamba2",
    "Mamba2Config",
    "Mamba2State",
    "MambaConfig",
    "MambaState",
    "Mixer",
    "RWKV4Config",
    "RWKV4State",
    "RWKV7Config",
    "RWKV7State",
]
