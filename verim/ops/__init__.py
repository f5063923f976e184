"""The kernels: pure functions of tensors, each a folder with its definition, fast versions and cost."""

from verim.ops.adamw import adamw, gradient_norm
from verim.ops.attention import attention, paged_attention, rotary_attention
from verim.ops.backend import force_backend
from verim.ops.causal_conv1d import causal_conv1d
from verim.ops.cross_entropy import cross_entropy
from verim.ops.distributed import (
    distributed_attention,
    distributed_causal_conv1d,
    distributed_linear_recurrence,
    distributed_selective_scan,
    distributed_state_space_dual,
    distributed_wkv,
    distributed_wkv7,
)
from verim.ops.linear import linear
from verim.ops.linear_cross_entropy import linear_cross_entropy
from verim.ops.linear_recurrence import linear_recurrence
from verim.ops.prefix_sum import prefix_sum
from verim.ops.rms_norm import rms_norm
from verim.ops.rotary import rotary
from verim.ops.scan import associative_scan
from verim.ops.selective_scan import selective_scan
from verim.ops.spiking import spiking
from verim.ops.state_space_dual import state_space_dual
from verim.ops.swiglu import swiglu
from verim.ops.wkv import wkv
from verim.ops.wkv7 import wkv7

__all__ = [
    "adamw",
    "associative_scan",
    "attention",
    "causal_conv1d",
    "cross_entropy",
    "distributed_attention",
    "distributed_causal_conv1d",
    "distributed_linear_recurrence",
    "distributed_selective_scan",
    "distributed_state_space_dual",
    "distributed_wkv",
    "distributed_wkv7",
    "force_backend",
    "gradient_norm",
    "linear",
    "linear_cross_entropy",
    "linear_recurrence",
    "paged_attention",
    "prefix_sum",
    "rms_norm",
    "rotary",
    "rotary_attention",
    "selective_scan",
    "spiking",
    "state_space_dual",
    "swiglu",
    "wkv",
    "wkv7",
]
