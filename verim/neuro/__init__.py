"""Learning without backpropagation: liquid state machines, echo state networks, readouts, local rules."""

from verim.neuro.echo import EchoStateNetwork, LinearReservoir, Reservoir, ReservoirConfig
from verim.neuro.liquid import Cochlea, Column, ColumnConfig, Liquid
from verim.neuro.plasticity import BCM, Hebb, Oja, Sanger, Subspace
from verim.neuro.readouts import LogisticClassifier, Ridge, RidgeClassifier
from verim.neuro.spike_timing import SpikeTiming

__all__ = [
    "BCM",
    "Cochlea",
    "Column",
    "ColumnConfig",
    "EchoStateNetwork",
    "Hebb",
    "LinearReservoir",
    "Liquid",
    "LogisticClassifier",
    "Oja",
    "Reservoir",
    "ReservoirConfig",
    "Ridge",
    "RidgeClassifier",
    "Sanger",
    "SpikeTiming",
    "Subspace",
]
