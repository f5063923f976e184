"""Layers made of ops: mixers along the sequence, feed-forward layers, norms; all go on from a state."""

from verim.nn.feed_forward import GELU, FeedForward, GELUConfig, SwiGLU, SwiGLUConfig
from verim.nn.layer import Layer, LayerConfig
from verim.nn.norm import NormConfig, RMSNorm
from verim.nn.state import StackState, State, TensorState

FEED_FORWARDS: dict[str, type] = {"swiglu": SwiGLUConfig, "gelu": GELUConfig}
"""What a block's feed-forward layer can be, by the name of its kind in a configuration."""

__all__ = [
    "FEED_FORWARDS",
    "GELU",
    "FeedForward",
    "GELUConfig",
    "Layer",
    "LayerConfig",
    "NormConfig",
    "RMSNorm",
    "StackState",
    "State",
    "SwiGLU",
    "SwiGLUConfig",
    "TensorState",
]
