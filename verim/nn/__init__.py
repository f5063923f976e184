"""Layers made of ops: mixers along the sequence, feed-forward layers, norms."""

from verim.nn.feed_forward import SwiGLU
from verim.nn.norm import RMSNorm

__all__ = ["RMSNorm", "SwiGLU"]
