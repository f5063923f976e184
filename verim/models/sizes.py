"""One dial, the width; what else a model of an architecture needs follows from it."""

from collections.abc import Callable
from dataclasses import replace

from verim.errors import InputError
from verim.models.config import BlockConfig, LanguageModelConfig
from verim.nn import SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MambaConfig
from verim.nn.recursion import RecursionConfig
from verim.nn.recursion_routing import ExpertChoiceConfig

RECURSIONS = 2
"""Of `mor`: at this depth of recursion alone the paper's models beat transformers of equal FLOPs (its table 3)."""


def transformer(width: int) -> LanguageModelConfig:
    """Heads of 16 channels, SwiGLU of 8/3 the width (Shazeer 2020, arXiv 2002.05202, section 3) in steps of 8."""
    block = BlockConfig(AttentionConfig(heads=max(1, width // 16)), SwiGLUConfig(hidden=8 * round(width / 3)))
    return LanguageModelConfig((block,), width, depth_of(width))


def mamba(width: int) -> LanguageModelConfig:
    """Two Mamba blocks for each block of a transformer (Gu & Dao 2023, arXiv 2312.00752, section 3.4)."""
    return LanguageModelConfig((BlockConfig(MambaConfig()),), width, 2 * depth_of(width))


def mor(width: int) -> LanguageModelConfig:
    """A Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524): all blocks but the outer ones are applied again.

    As many blocks of their own as a transformer of the width has, at least three, the first and the last not shared
    (middle-cycle, the best of the paper's table 10); tokens are chosen by their recursion.
    """
    blocks = max(3, depth_of(width))
    recursion = RecursionConfig(RECURSIONS, "middle_cycle", ExpertChoiceConfig())
    return replace(transformer(width), depth=2 + RECURSIONS * (blocks - 2), recursion=recursion)


def depth_of(width: int) -> int:
    """Transformer blocks at a width: one for every full 64 channels, nanochat's ratio.

    Our sweep at 3e11 and 6e11 FLOPs found one block better than two up to width 64 (docs/LOG.md).
    """
    return max(1, width // 64)


ARCHITECTURES: dict[str, Callable[[int], LanguageModelConfig]] = {
    "transformer": transformer,
    "mamba": mamba,
    "mor": mor,
}


def architecture_config(architecture: str, width: int, vocab: int = 256) -> LanguageModelConfig:
    """The configuration of `architecture` at `width`, for `vocab` tokens. Raises `InputError` for an unknown name."""
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture: got {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    return replace(ARCHITECTURES[architecture](width), vocab=vocab)
