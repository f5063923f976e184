"""One dial, the width; what else a model of an architecture needs follows from it."""

from collections.abc import Callable

from verim.errors import InputError
from verim.models.language_model import LanguageModelConfig
from verim.nn.mixers import AttentionConfig, MambaConfig


def transformer(width: int) -> LanguageModelConfig:
    return LanguageModelConfig(
        mixer=AttentionConfig(heads=max(1, width // 16)), width=width, depth=depth_of(width), hidden=8 * round(width / 3)
    )


def mamba(width: int) -> LanguageModelConfig:
    return LanguageModelConfig(mixer=MambaConfig(), width=width, depth=2 * depth_of(width))


def depth_of(width: int) -> int:
    return max(1, round(width / 32))


ARCHITECTURES: dict[str, Callable[[int], LanguageModelConfig]] = {"transformer": transformer, "mamba": mamba}


def architecture_config(architecture: str, width: int) -> LanguageModelConfig:
    """The configuration of `architecture` at `width`. Raises `InputError` for a name it does not know."""
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture: got {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](width)
