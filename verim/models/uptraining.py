"""Up-training: a trained model becomes a recursive one, whose shared blocks begin as what they replace."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from verim.errors import InputError
from verim.models.language_model import LanguageModel
from verim.nn.recursion import RecursionConfig

Initial = Literal["stepwise", "average", "lower"]


def recursive_from(model: LanguageModel, recursion: RecursionConfig, initial: Initial = "stepwise") -> LanguageModel:
    """A model with `recursion`, as deep as `model`, to be trained on (Bae et al. 2024, arXiv 2410.20672, section 2.3).

    Embedding, norms, head and blocks that are not shared are taken over. A shared block begins as, `initial`:
    "average": the mean of the blocks whose place it takes; "stepwise": one of the shared part's blocks at even steps,
    the first and the last among them; "lower": the first blocks of that part. The weights are copies.

    Raises `InputError` where `model` is recursive already, its blocks differ in kind, or its depth cannot be divided.
    """
    if initial not in get_args(Initial):
        raise InputError(f"initial: got {initial!r}, expected one of {', '.join(get_args(Initial))}")
    if model.config.recursion is not None:
        raise InputError("model: got a recursive one, expected one whose blocks are applied once each")
    if len(set(model.config.pattern)) > 1:
        raise InputError(
            f"model: got a pattern of {len(model.config.pattern)} kinds of blocks, expected one: blocks that share "
            "weights are alike"
        )
    config = replace(model.config, pattern=model.config.pattern[:1], recursion=recursion)
    result = LanguageModel(config)
    sources = _sources(config.order, recursion.outer, initial)
    weights = dict(model.state_dict())
    taken = {name: value for name, value in weights.items() if not name.startswith("blocks.")}
    for block, places in enumerate(sources):
        for name in result.blocks[block].state_dict():
            taken[f"blocks.{block}.{name}"] = _mean([weights[f"blocks.{place}.{name}"] for place in places])
    missing, unexpected = result.load_state_dict(taken, strict=False)
    assert not unexpected and all(name.startswith("routed.") for name in missing), "only routers are new"
    return result.to(next(model.parameters()))


def _sources(order: Sequence[int], outer: int, initial: Initial) -> list[list[int]]:
    """The places in the whole model that each block of the recursive one begins as the mean of."""
    blocks = max(order) + 1
    shared = blocks - 2 * outer
    if initial == "average":
        return [[place for place, block in enumerate(order) if block == own] for own in range(blocks)]
    inner = len(order) - 2 * outer
    steps = torch.linspace(0, inner - 1, shared).round().int().tolist() if initial == "stepwise" else range(shared)
    middle = [[outer + place] for place in steps]
    return [[0], *middle, [len(order) - 1]] if outer else middle


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
