"""The kernels: pure functions of tensors, each a folder with its definition, fast versions and cost."""

from verim.ops.backend import force_backend
from verim.ops.causal_conv1d import causal_conv1d
from verim.ops.cross_entropy import cross_entropy
from verim.ops.selective_scan import selective_scan

__all__ = ["causal_conv1d", "cross_entropy", "force_backend", "selective_scan"]
