"""Mixers: layers that mix along the sequence, all behind one call."""

from verim.nn.mixers.attention import Attention, AttentionConfig
from verim.nn.mixers.attention_state import AttentionState
from verim.nn.mixers.mamba import Mamba, MambaConfig, MambaState
from verim.nn.mixers.mixer import Mixer

MIXERS: dict[str, type] = {
    "attention": AttentionConfig,
    "mamba": MambaConfig,
}
"""The kinds of mixers, by their name in a configuration."""

__all__ = [
    "MIXERS",
    "Attention",
    "AttentionConfig",
    "AttentionState",
    "Mamba",
    "MambaConfig",
    "MambaState",
    "Mixer",
]
