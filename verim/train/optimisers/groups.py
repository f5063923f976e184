"""The weights of a model by what they do, and how fast each kind learns at any width."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from verim.errors import InputError
from verim.nn import Matrix

REFERENCE_FAN_IN = 32
"""The fan-in at which a matrix learns with the learning rate as given."""
LARGEST_FACTOR = 4.0
"""The rule is for a fan-in that grows with the width; a low-rank one (Mamba's Δ: 1 to 4) would learn too fast."""
VECTOR_FACTOR = 0.3
"""Gains, biases and decay rates learn slower: at the full rate some small Mambas never recover from the start."""
OUTPUT_LAYERS = ("head", "lm_head")
"""Names of the matrix that makes the logits."""


@dataclass(frozen=True)
class WeightGroup:
    """Weights that learn alike.

    - `kind`: "matrix" (of a layer, or a stack of them), "output" (the matrix that makes the logits), "table" (of an
      embedding) or "vector" (gains, biases, decay rates, filters of a channel: all else).
    - `fan_in`, `fan_out`: inputs and outputs of a matrix; of a table and a vector 1 and its channels.
    """

    kind: str
    fan_in: int
    fan_out: int
    weights: tuple[nn.Parameter, ...]


def weight_groups(model: nn.Module) -> list[WeightGroup]:
    """All weights of `model` that are trained, each once: a table that is tied to the output counts as the output.

    Raises `InputError` where there are none.
    """
    placed: dict[int, nn.Parameter] = {}
    members: dict[tuple[str, int, int], list[nn.Parameter]] = {}
    for kind, fan_in, fan_out, weight in _found(model):
        if weight.requires_grad and id(weight) not in placed:
            placed[id(weight)] = weight
            members.setdefault((kind, fan_in, fan_out), []).append(weight)
    if not members:
        raise InputError("the model has no weights to train: none has requires_grad")
    return [WeightGroup(*key, tuple(weights)) for key, weights in sorted(members.items(), key=lambda item: item[0])]


def adam_factor(group: WeightGroup) -> float:
    """What multiplies the learning rate where the update has entries of a size that the gradient's does not change.

    A matrix: min(4, 32 / fan_in), as maximal update parametrisation has it for Adam (Yang et al. 2022, arXiv
    2203.03466, table 3) and for whatever normalises its gradient entry by entry (Yang & Littwin 2023, arXiv
    2308.01814); a table: 1; a vector: 0.3 (docs/LOG.md).
    """
    if group.kind in ("matrix", "output"):
        return min(LARGEST_FACTOR, REFERENCE_FAN_IN / group.fan_in)
    return 1.0 if group.kind == "table" else VECTOR_FACTOR


def descent_factor(group: WeightGroup) -> float:
    """What multiplies the learning rate where the update is the gradient, or a sum of gradients.

    A matrix: min(4, fan_out / fan_in), the spectral form of maximal update parametrisation (Yang, Simon & Bernstein
    2023, arXiv 2310.17813, parametrisation 1): 1 for hidden matrices, less and less for the output as the width grows;
    a table and a vector, whose input is one entry: channels / 32.
    """
    if group.kind in ("matrix", "output"):
        return min(LARGEST_FACTOR, group.fan_out / group.fan_in)
    return group.fan_out / REFERENCE_FAN_IN


def _found(model: nn.Module) -> Iterator[tuple[str, int, int, Any]]:
    """Each weight, perhaps more than once: its first kind is its kind."""
    for name, module in model.named_modules():
        if isinstance(module, Matrix) and isinstance(module.weight, nn.Parameter):
            kind = "output" if name.rpartition(".")[2] in OUTPUT_LAYERS else "matrix"
            yield kind, module.in_features, module.out_features, module.weight
    for module in model.modules():
        if isinstance(module, nn.RNNBase):  # torch's recurrent layers have no Linear inside
            for weight in module.parameters():
                if weight.dim() == 2:
                    yield "matrix", weight.shape[1], weight.shape[0], weight
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield "matrix", module.embed_dim, module.in_proj_weight.shape[0], module.in_proj_weight
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1:
            yield "matrix", math.prod(module.weight.shape[1:]), module.out_channels, module.weight
        elif isinstance(module, nn.Embedding):
            yield "table", 1, module.embedding_dim, module.weight
    for weight in model.parameters():
        yield "vector", 1, weight.shape[-1] if weight.dim() else 1, weight
