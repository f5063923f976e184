"""A trained model becomes a recursive one: each shared block begins as what it replaces."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from verim.errors import InputError
from verim.models import LanguageModel, architecture_config
from verim.models.uptraining import recursive_from
from verim.nn.recursion import RecursionConfig
from verim.nn.recursion_routing import ExpertChoiceConfig


def whole(depth: int) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(replace(architecture_config("transformer", 16), depth=depth))
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize(
    ("initial", "sharing", "sources"),
    [
        ("average", "middle_cycle", [[0], [1, 3, 5], [2, 4, 6], [7]]),
        ("average", "middle_sequence", [[0], [1, 2, 3], [4, 5, 6], [7]]),
        ("stepwise", "middle_cycle", [[0], [1], [6], [7]]),
        ("lower", "middle_cycle", [[0], [1], [2], [7]]),
    ],
)
def test_blocks_begin_as_what_they_replace(initial: Any, sharing: Any, sources: list[list[int]]) -> None:
    model = whole(8)
    result = recursive_from(model, RecursionConfig(3, sharing), initial)
    for block, places in zip(result.blocks, sources, strict=True):
        for name, weight in block.named_parameters():
            expected = sum(model.blocks[place].get_parameter(name) for place in places) / len(places)
            torch.testing.assert_close(weight, expected)
    assert not {w.data_ptr() for w in model.parameters()} & {w.data_ptr() for w in result.parameters()}


def test_equal_blocks_become_the_same_function() -> None:
    model, read = whole(5), torch.randint(0, 256, (2, 7))
    for block in list(model.blocks)[2:4]:
        block.load_state_dict(model.blocks[1].state_dict())
    for initial in ("average", "stepwise", "lower"):
        again = recursive_from(model, RecursionConfig(3), initial)
        torch.testing.assert_close(again(read)[0], model(read)[0])


def test_a_mixture_of_recursions_trains_on() -> None:
    result = recursive_from(whole(5), RecursionConfig(3, routing=ExpertChoiceConfig()))
    logits, _ = result(torch.randint(0, 256, (2, 9)))
    logits.square().mean().backward()
    assert all(weight.grad is not None for weight in result.parameters())


def test_what_cannot_be_shared_is_refused() -> None:
    recursion = RecursionConfig(3)
    for model, message in (
        (recursive_from(whole(5), recursion), "model: got a recursive one"),
        (whole(6), "depth: got 6, expected 2 and a multiple of recursions, 3"),
    ):
        with pytest.raises(InputError, match=message):
            recursive_from(model, recursion)
    with pytest.raises(InputError, match="initial: got 'random', expected one of stepwise, average, lower"):
        recursive_from(whole(5), recursion, "random")
