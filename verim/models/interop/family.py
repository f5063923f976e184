"""What a family of checkpoints is: how its configuration and its tensors are said in ours."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from verim.errors import InputError
from verim.models.config import BlockConfig, LanguageModelConfig
from verim.models.interop.fields import Fields
from verim.models.language_model import LanguageModel


@dataclass(frozen=True)
class Weight:
    """Our tensor `ours` holds their tensors `theirs`, one below the other.

    `rows`: how many of ours each of theirs holds, where there are several. `shape`: of each of theirs, where it is
    another than ours with the same elements.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None

    def shapes(self, ours: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes of theirs, when ours has shape `ours`."""
        if not self.rows:
            return [self.shape or ours]
        return [self.shape or (rows, *ours[1:]) for rows in self.rows]


class Family(ABC):
    """A kind of checkpoint: `name` is the `model_type` in config.json, `architecture` the class in `transformers`."""

    name: str
    architecture: str

    @abstractmethod
    def read(self, fields: Fields) -> LanguageModelConfig:
        """Our configuration. Raises `InputError` that names the first field that is not supported."""

    @abstractmethod
    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        """The fields of config.json. Raises `InputError` that names what of `config` the family does not have."""

    @abstractmethod
    def weights(self, model: LanguageModel) -> Iterator[Weight]:
        """All tensors that `model` may have, in its order: those that it has not (biases, a tied head) are left out."""

    def aliases(self) -> dict[str, str]:
        """Names that older checkpoints have, and what they are called now."""
        return {}

    def is_derived(self, name: str) -> bool:
        """Whether the tensor `name` follows from the configuration: older checkpoints hold such."""
        return False


def own_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """All that a checkpoint of `model` holds: weights, a tied head only once, and buffers that training changes."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def only_block(family: str, config: LanguageModelConfig, mixer: type, feed_forward: type | None) -> BlockConfig:
    """The block that all of `config` repeats. Raises `InputError` where they differ or are of other kinds."""
    for index in range(len(config.pattern)):
        block = config.pattern[index]
        place = f"pattern[{index}]"
        if block != config.pattern[0]:
            raise InputError(f"{place}: differs from pattern[0], but all blocks of {family} are alike")
        _check_kind(family, f"{place}.mixer", block.mixer, mixer)
        _check_kind(family, f"{place}.feed_forward", block.feed_forward, feed_forward)
    return config.pattern[0]


def check(family: str, name: str, got: Any, expected: Any) -> None:
    """Raises `InputError` where `config.<name>` is not what every model of `family` has."""
    if got != expected:
        raise InputError(f"{name}: got {got!r}, but {family} has {expected!r}")


def _check_kind(family: str, place: str, layer: Any, kind: type | None) -> None:
    if (type(layer) if layer is not None else None) is not kind:
        got = "none" if layer is None else type(layer).__name__
        raise InputError(f"{place}: got {got}, but {family} has {'none' if kind is None else kind.__name__}")
