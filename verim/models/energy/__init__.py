"""Energy-based models: E(x, y) is low where x and y belong together, and inference is the search for the lowest.

- `RestrictedBoltzmannMachine`, `NeuralEnergy`: two energies; any function of a batch that gives a number a row is one.
- `descend`, `langevin`, `gibbs`: argmin E, or draws from exp(−E / T) / Z.
- `EnergyLearner`: CD-k and persistent contrastive divergence. `score_matching`, `sliced_score_matching`,
  `denoising_score_matching`, `noise_contrastive`: losses that need no sampler.
- `annealed_log_partition`, `exact_log_partition`: ln Z, which none of these need.
"""

from verim.models.energy.boltzmann import RestrictedBoltzmannMachine
from verim.models.energy.inference import Energy, descend, gibbs, langevin
from verim.models.energy.learner import EnergyLearner, LearnerConfig
from verim.models.energy.neural import NeuralEnergy, WalkConfig, convolution_network, dense_network
from verim.models.energy.objectives import (
    contrastive_divergence,
    denoising_score_matching,
    noise_contrastive,
    score_matching,
    sliced_score_matching,
)
from verim.models.energy.partition import LogPartition, annealed_log_partition, exact_log_partition

__all__ = [
    "Energy",
    "EnergyLearner",
    "LearnerConfig",
    "LogPartition",
    "NeuralEnergy",
    "RestrictedBoltzmannMachine",
    "WalkConfig",
    "annealed_log_partition",
    "contrastive_divergence",
    "convolution_network",
    "denoising_score_matching",
    "dense_network",
    "descend",
    "exact_log_partition",
    "gibbs",
    "langevin",
    "noise_contrastive",
    "score_matching",
    "sliced_score_matching",
]
