"""Memory by the formulas of the text books, to the byte: what a model of so many parameters takes before anything runs.

They know parameters and shapes of a transformer, nothing else; `predict_memory` knows the model. GB are 1e9 bytes.
"""

from dataclasses import dataclass

from verim.errors import InputError


@dataclass(frozen=True)
class StateBudget:
    """Bytes that lie there whatever the batch: weights, their gradients, the optimiser's state."""

    weights: float
    gradients: float
    optimiser: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser


def state_budget(
    parameters: float, weight_bytes: float = 2, gradient_bytes: float = 2, optimiser_bytes: float = 8
) -> StateBudget:
    """Of `parameters` weights; by default in bfloat16, with Adam's two moments in float32.

    >>> state_budget(1e9)  # a billion parameters: 2 + 2 + 8 GB
    StateBudget(weights=2000000000.0, gradients=2000000000.0, optimiser=8000000000.0)
    """
    _check(parameters=parameters)
    return StateBudget(parameters * weight_bytes, parameters * gradient_bytes, parameters * optimiser_bytes)


def residual_activations(batch: int, length: int, width: int, layers: int, element_bytes: float = 2) -> float:
    """Bytes of one [batch, length, width] tensor a layer: what is kept where each layer keeps its input alone.

    A course's budget of Llama-2-7B (32 layers of 4096 channels) at 4096 tokens, batch 4 has 17.18 GB of activations:
    that is 4 of them in bfloat16, or 2 in float32 (see `kept` in `activations_budget`).

    >>> residual_activations(4, 4096, 4096, 32) / 1e9
    4.294967296
    """
    _check(batch=batch, length=length, width=width, layers=layers)
    return float(batch * length * width * layers * element_bytes)


def activations_budget(
    batch: int, length: int, width: int, layers: int, kept: float, element_bytes: float = 2
) -> float:
    """Bytes where every layer keeps `kept` tensors of [batch, length, width].

    >>> activations_budget(4, 4096, 4096, 32, kept=4) / 1e9
    17.179869184
    """
    return kept * residual_activations(batch, length, width, layers, element_bytes)


def length_of_activations(
    total: float, batch: int, width: int, layers: int, kept: float, element_bytes: float
) -> float:
    """The length of the sequences that a budget of activations has in mind without saying it.

    A course gives a model of a billion parameters 16 GB of activations and no length. With 16 layers of 2048 channels
    (Llama-3.2-1B's), batch 8 and 4 tensors a layer in bfloat16, it is that of 7629 tokens:

    >>> round(length_of_activations(16e9, 8, 2048, 16, 4, 2))
    7629
    """
    _check(total=total)
    return total / activations_budget(batch, 1, width, layers, kept, element_bytes)


def sharded_state_bytes(stage: int, ranks: int) -> float:
    """Bytes a parameter and rank of training in mixed precision with Adam: 16, of which ZeRO's stages share some.

    Weights and gradients take 2 bytes each, the float32 weights and two moments 12. Stage 1 shares the 12, stage 2
    the gradients as well, stage 3 all: 4 + 12 / N, 2 + 14 / N, 16 / N (Rajbhandari et al. 2020, arXiv 1910.02054,
    figure 1).

    >>> [sharded_state_bytes(stage, 64) for stage in range(4)]
    [16.0, 4.1875, 2.21875, 0.25]
    """
    if stage not in (0, 1, 2, 3):
        raise InputError(f"stage: got {stage!r}, expected 0, 1, 2 or 3")
    _check(ranks=ranks)
    own, shared = ((16, 0), (4, 12), (2, 14), (0, 16))[stage]
    return own + shared / ranks


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name}: got {value}, expected a positive number")
