"""AdamW with a learning rate for each kind of weight."""

from dataclasses import dataclass

import torch
from torch import nn

from verim.errors import InputError

REFERENCE_FAN_IN = 32
"""The fan-in at which a matrix learns with the learning rate as given."""


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    `learning_rate` is that of embeddings, gains and biases; a matrix takes learning_rate · 32 / fan_in, as maximal
    update parametrisation has it for Adam (Yang et al. 2022, arXiv 2203.03466, table 8), so that one number serves
    every width. Weight decay acts on matrices alone.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate: got {self.learning_rate}, expected a positive number")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a number in [0, 1)")

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """The optimiser of `model`; each group keeps its own rate as `base_rate` for the schedule to scale."""
        matrices: dict[int, list[nn.Parameter]] = {}
        for module in model.modules():
            if isinstance(module, nn.Linear) and isinstance(module.weight, nn.Parameter):
                matrices.setdefault(module.in_features, []).append(module.weight)
        in_matrices = {id(weight) for weights in matrices.values() for weight in weights}
        others = [weight for weight in model.parameters() if id(weight) not in in_matrices]
        groups = [
            {
                "params": weights,
                "base_rate": self.learning_rate * REFERENCE_FAN_IN / fan_in,
                "weight_decay": self.weight_decay,
            }
            for fan_in, weights in sorted(matrices.items())
        ]
        groups.append({"params": others, "base_rate": self.learning_rate, "weight_decay": 0.0})
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )
