"""Learning without backpropagation: liquid state machines, readouts, local rules."""

from verim.neuro.liquid import Cochlea, Column, ColumnConfig, Liquid
from verim.neuro.readouts import LogisticClassifier, Ridge, RidgeClassifier
from verim.neuro.spike_timing import SpikeTiming

__all__ = [
    "Cochlea",
    "Column",
    "ColumnConfig",
    "Liquid",
    "LogisticClassifier",
    "Ridge",
    "RidgeClassifier",
    "SpikeTiming",
]
