"""Layers made of ops: mixers along the sequence, feed-forward layers, norms; all go on from a state."""

from verim.nn.auxiliary import auxiliary_losses
from verim.nn.documents import within_documents
from verim.nn.feed_forward import GELU, FeedForward, GELUConfig, SwiGLU, SwiGLUConfig
from verim.nn.layer import Layer, LayerConfig
from verim.nn.linear_stack import LinearStack, Matrix
from verim.nn.mixture_of_experts import MixtureOfExperts, MixtureOfExpertsConfig
from verim.nn.norm import NormConfig, RMSNorm
from verim.nn.routing import Routing
from verim.nn.rwkv_channel_mix import RWKV4ChannelMix, RWKV4ChannelMixConfig, RWKV7ChannelMix, RWKV7ChannelMixConfig
from verim.nn.state import StackState, State, TensorState

FEED_FORWARDS: dict[str, type] = {
    "swiglu": SwiGLUConfig,
    "gelu": GELUConfig,
    "experts": MixtureOfExpertsConfig,
    "rwkv4": RWKV4ChannelMixConfig,
    "rwkv7": RWKV7ChannelMixConfig,
}
"""What a block's feed-forward layer can be, by the name of its kind in a configuration."""

__all__ = [
    "FEED_FORWARDS",
    "GELU",
    "FeedForward",
    "GELUConfig",
    "Layer",
    "LayerConfig",
    "LinearStack",
    "Matrix",
    "MixtureOfExperts",
    "MixtureOfExpertsConfig",
    "NormConfig",
    "RMSNorm",
    "RWKV4ChannelMix",
    "RWKV4ChannelMixConfig",
    "RWKV7ChannelMix",
    "RWKV7ChannelMixConfig",
    "Routing",
    "StackState",
    "State",
    "SwiGLU",
    "SwiGLUConfig",
    "TensorState",
    "auxiliary_losses",
    "within_documents",
]
