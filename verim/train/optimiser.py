"""AdamW with a learning rate for each kind of weight."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from verim.errors import InputError
from verim.nn import Matrix

REFERENCE_FAN_IN = 32
"""The fan-in at which a matrix learns with the learning rate as given."""
LARGEST_FACTOR = 4.0
"""The rule is for a fan-in that grows with the width; a low-rank one (Mamba's Δ: 1 to 4) would learn too fast."""
VECTOR_FACTOR = 0.3
"""Gains, biases and decay rates learn slower: at the full rate some small Mambas never recover from the start."""


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    `learning_rate` is that of embeddings; a matrix takes learning_rate · min(4, 32 / fan_in), as maximal update
    parametrisation has it for Adam (Yang et al. 2022, arXiv 2203.03466, table 8), so that one number serves every
    width; gains, biases and other vectors take 0.3 of it (docs/LOG.md). Weight decay acts on matrices alone.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate: got {self.learning_rate}, expected a positive number")
        for name in ("eps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a finite number of at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a number in [0, 1)")

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """The optimiser of `model`; each group keeps its own rate as `base_rate` for the schedule to scale."""
        matrices: dict[int, list[nn.Parameter]] = {}
        for module in model.modules():
            if isinstance(module, Matrix) and isinstance(module.weight, nn.Parameter):
                matrices.setdefault(module.in_features, []).append(module.weight)
            if isinstance(module, nn.RNNBase):  # torch's recurrent layers have no Linear inside
                for weight in module.parameters():
                    if weight.dim() == 2:
                        matrices.setdefault(weight.shape[1], []).append(weight)
        tables = [w for m in model.modules() if isinstance(m, nn.Embedding) for w in m.parameters()]
        placed = {id(weight) for weights in [tables, *matrices.values()] for weight in weights}
        vectors = [weight for weight in model.parameters() if id(weight) not in placed]
        kinds = [
            (weights, min(LARGEST_FACTOR, REFERENCE_FAN_IN / fan_in), self.weight_decay)
            for fan_in, weights in sorted(matrices.items())
        ]
        kinds += [(tables, 1.0, 0.0), (vectors, VECTOR_FACTOR, 0.0)]
        groups = [
            {"params": weights, "base_rate": self.learning_rate * factor, "weight_decay": decay}
            for weights, factor, decay in kinds
            if weights
        ]
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )
