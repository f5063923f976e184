"""Local rules of synaptic plasticity: what a synapse knows is its input, its neuron's output, and itself."""

from verim.neuro.plasticity.bcm import BCM
from verim.neuro.plasticity.components import Oja, Sanger, Subspace
from verim.neuro.plasticity.hebb import Hebb
from verim.neuro.plasticity.rates import Rate, constant, inverse_decay

__all__ = ["BCM", "Hebb", "Oja", "Rate", "Sanger", "Subspace", "constant", "inverse_decay"]
