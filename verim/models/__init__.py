"""Whole networks with their configurations."""

from verim.models.language_model import Block, LanguageModel, LanguageModelConfig
from verim.models.sizes import ARCHITECTURES, architecture_config

__all__ = ["ARCHITECTURES", "Block", "LanguageModel", "LanguageModelConfig", "architecture_config"]
