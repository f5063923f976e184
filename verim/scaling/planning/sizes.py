"""Sizes of an architecture by one dial, its width: counted without a weight being made, however large they are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TypeVar

import torch

from verim.models import LanguageModel, LanguageModelConfig, architecture_config
from verim.scaling.speed import WIDTHS
from verim.train.rules import LENGTH

Key = TypeVar("Key", bound=str)

WIDEST = 65_536
_STEP = 128
"""Between widths above those of a study: heads of 16 channels then divide over 8 tensor ranks."""
_CYCLES = (2, 3)
"""Of how many repetitions of the pattern the samples are; the first block of some mixers has other weights."""


@dataclass(frozen=True, eq=False)
class Size:
    """A model of `architecture` for sequences of `length`: what a plan needs to know of it.

    Blocks of a pattern are alike, so every count is a straight line in the depth: two models of few blocks on the meta
    device tell it for any number (`along`), exactly. Sizes are made by `size_of`, the same one for the same arguments.
    """

    architecture: str
    config: LanguageModelConfig
    length: int

    @cached_property
    def samples(self) -> tuple[LanguageModel, ...]:
        """The same model with few blocks: two of them, or, where it is no deeper itself, it alone."""
        depths = [self._depth(cycles) for cycles in _CYCLES]
        if depths[-1] >= self.config.depth or (self.config.depth - depths[0]) % (depths[1] - depths[0]):
            depths = [self.config.depth]
        with torch.device("meta"):
            return tuple(LanguageModel(replace(self.config, depth=depth)) for depth in depths)

    def along(self, figure: Callable[[LanguageModel], float]) -> float:
        """`figure` of the model, which is a straight line in the depth."""
        return self.all_along(lambda model: {"": figure(model)})[""]

    def all_along(self, figures: Callable[[LanguageModel], Mapping[Key, float]]) -> dict[Key, float]:
        """The same of several figures by name."""
        first, *others = (figures(model) for model in self.samples)
        if not others:
            return dict(first)
        shallow, deep = (model.config.depth for model in self.samples)
        further = (self.config.depth - shallow) / (deep - shallow)
        return {name: value + (others[0][name] - value) * further for name, value in first.items()}

    @cached_property
    def total(self) -> int:
        return round(self.along(lambda model: model.parameter_count().total))

    @cached_property
    def active(self) -> int:
        return round(self.along(lambda model: model.parameter_count().active))

    @cached_property
    def non_embedding(self) -> int:
        return round(self.along(lambda model: model.parameter_count().non_embedding))

    @cached_property
    def flops_per_token(self) -> float:
        """Of training: forward and backward."""
        return self.along(lambda model: model.flops(self.length))

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def depth(self) -> int:
        return self.config.depth

    def _depth(self, cycles: int) -> int:
        """The depth of a model of `cycles` of the pattern, and of what does not repeat."""
        recursion, period = self.config.recursion, len(self.config.pattern)
        if recursion is None:
            return cycles * period
        return 2 * recursion.outer + recursion.recursions * cycles * period


@lru_cache(maxsize=4096)
def size_of(architecture: str, width: int, vocab: int = 256, length: int = LENGTH) -> Size:
    """The size of `architecture` at `width`. Raises `InputError` for an unknown architecture."""
    config = replace(architecture_config(architecture, width, vocab), context=length)
    return Size(architecture, config, length)


def widths() -> Iterator[int]:
    """Those to choose from, rising: a study's, then steps of 128, and of 3 % where that is more."""
    yield from WIDTHS
    width = WIDTHS[-1]
    while width < WIDEST:
        width += _STEP * max(1, round(0.03 * width / _STEP))
        yield width
