"""Weights between a checkpoint and a model of ours: every name and shape is checked before any is copied."""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.models.config import LanguageModelConfig
from verim.models.interop.checkpoint import Source
from verim.models.interop.family import Family, Weight, own_tensors
from verim.models.language_model import LanguageModel

Shapes = Mapping[str, tuple[int, ...]]


def build(config: LanguageModelConfig, family: Family, source: Source, dtype: torch.dtype, place: str) -> LanguageModel:
    """A model of `config` with the weights of `source` in `dtype`, in evaluation mode.

    Raises `InputError` that names the first tensor of another shape than `config` asks for, or those that are missing,
    or those that there is no place for; `place` is what it calls the checkpoint.
    """
    with torch.device("meta"):
        model = LanguageModel(config)
    own = own_tensors(model)
    weights = _weights(family, model)
    shapes = {
        name: shape
        for weight in weights
        for name, shape in zip(weight.theirs, weight.shapes(tuple(own[weight.ours].shape)), strict=True)
    }
    aliases = family.aliases()
    files = {aliases.get(name, name): name for name in source.shapes if not family.is_derived(name)}
    held = {name: source.shapes[file] for name, file in files.items()}
    head = _tied_head(family, model)
    if head in held:  # beside the embedding, once more
        embedding = next(weight.theirs[0] for weight in weights if weight.ours == "embedding.weight")
        _check(place, shapes | {head: shapes[embedding]}, held)
        if not torch.equal(source.read(files[head]), source.read(files[embedding])):
            raise InputError(
                f"{place}: {head} differs from {embedding}, but its configuration says that they are one "
                "(tie_word_embeddings): set it to false there"
            )
    else:
        _check(place, shapes, held)
    for weight in weights:
        before = own[weight.ours]
        is_weight = isinstance(before, nn.Parameter)
        ours = torch.empty(before.shape, dtype=dtype if is_weight else before.dtype)
        parts = ours.split(weight.rows) if weight.rows else (ours,)
        for part, name in zip(parts, weight.theirs, strict=True):
            part.copy_(source.read(files[name]).view(part.shape))
        module, _, leaf = weight.ours.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(ours) if is_weight else ours)
    if config.tied:
        model.head.weight = model.embedding.weight
    assert not any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())), f"{family.name} lacks some"
    return model.eval()


def tensors(model: LanguageModel, family: Family) -> dict[str, Tensor]:
    """The weights of `model` as `family` has them, views of the model's."""
    own = own_tensors(model)
    result: dict[str, Tensor] = {}
    for weight in _weights(family, model):
        ours = own[weight.ours].detach()
        parts: Sequence[Tensor] = ours.split(weight.rows) if weight.rows else (ours,)
        for name, part, shape in zip(weight.theirs, parts, weight.shapes(tuple(ours.shape)), strict=True):
            result[name] = part.reshape(shape)
    return result


def _weights(family: Family, model: LanguageModel) -> list[Weight]:
    """The weights of `family` that `model` has."""
    own = own_tensors(model)
    weights = [weight for weight in family.weights(model) if weight.ours in own]
    lost = set(own) - {weight.ours for weight in weights}
    assert not lost, f"{family.name} has no place for {sorted(lost)}"
    return weights


def _tied_head(family: Family, model: LanguageModel) -> str:
    """The head's name in the checkpoint where the embedding serves as head, "" where the head is free."""
    tied = [weight.theirs[0] for weight in family.weights(model) if weight.ours == "head.weight" and model.config.tied]
    return tied[0] if tied else ""


def _check(place: str, expected: Shapes, held: Shapes) -> None:
    for name, shape in expected.items():
        if name in held and held[name] != shape:
            raise InputError(
                f"{place}: {name} has shape {list(held[name])}, expected {list(shape)} by its configuration: one of "
                "the two is another model's"
            )
    for names, what in (
        ([name for name in expected if name not in held], "lacks what its configuration asks for"),
        ([name for name in held if name not in expected], "holds what its configuration has no place for"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"{place}: {what}: {', '.join(names[:3])}{more}")
