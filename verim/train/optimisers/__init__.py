"""Optimisers of any model, by one registry."""

from verim.train.optimisers.adam import AdamConfig, AdamW, AdamWConfig, ScalingOptimiser
from verim.train.optimisers.adam_8bit import AdamW8bit, AdamW8bitConfig
from verim.train.optimisers.adaptive import AdadeltaConfig, AdagradConfig, RMSpropConfig
from verim.train.optimisers.clipping import clipped_step, gradient_norm
from verim.train.optimisers.config import OptimiserConfig
from verim.train.optimisers.descent import MomentumConfig, NesterovConfig, SGDConfig
from verim.train.optimisers.groups import WeightGroup, weight_groups
from verim.train.optimisers.lion import Lion, LionConfig
from verim.train.optimisers.muon import Muon, MuonConfig
from verim.train.optimisers.state import restore_state, state_tensors

OPTIMISERS: dict[str, type[OptimiserConfig]] = {
    "sgd": SGDConfig,
    "momentum": MomentumConfig,
    "nesterov": NesterovConfig,
    "adagrad": AdagradConfig,
    "adadelta": AdadeltaConfig,
    "rmsprop": RMSpropConfig,
    "adam": AdamConfig,
    "adamw": AdamWConfig,
    "adamw_8bit": AdamW8bitConfig,
    "lion": LionConfig,
    "muon": MuonConfig,
}
"""The kinds of optimisers, by their name in a configuration."""

__all__ = [
    "OPTIMISERS",
    "AdadeltaConfig",
    "AdagradConfig",
    "AdamConfig",
    "AdamW",
    "AdamW8bit",
    "AdamW8bitConfig",
    "AdamWConfig",
    "Lion",
    "LionConfig",
    "MomentumConfig",
    "Muon",
    "MuonConfig",
    "NesterovConfig",
    "OptimiserConfig",
    "RMSpropConfig",
    "SGDConfig",
    "ScalingOptimiser",
    "WeightGroup",
    "clipped_step",
    "gradient_norm",
    "restore_state",
    "state_tensors",
    "weight_groups",
]
