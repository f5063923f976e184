"""Mixers: layers that mix along the sequence, all behind one call."""

from verim.nn.mixers.attention import Attention, AttentionConfig, AttentionState
from verim.nn.mixers.mamba import Mamba, MambaConfig, MambaState
from verim.nn.mixers.mixer import Mixer

MixerConfig = AttentionConfig | MambaConfig

__all__ = [
    "Attention",
    "AttentionConfig",
    "AttentionState",
    "Mamba",
    "MambaConfig",
    "MambaState",
    "Mixer",
    "MixerConfig",
]
