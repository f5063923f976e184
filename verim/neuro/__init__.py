"""Learning without backpropagation: liquid state machines, readouts, local rules."""

from verim.neuro.liquid import Cochlea, Column, ColumnConfig, Liquid
from verim.neuro.plasticity import BCM, Hebb, Oja, Sanger, Subspace
from verim.neuro.readouts import LogisticClassifier, Ridge, RidgeClassifier
from verim.neuro.spike_timing import SpikeTiming

__all__ = [
    "BCM",
    "Cochlea",
    "Column",
    "ColumnConfig",
    "Hebb",
    "Liquid",
    "LogisticClassifier",
    "Oja",
    "Ridge",
    "RidgeClassifier",
    "Sanger",
    "SpikeTiming",
    "Subspace",
]
