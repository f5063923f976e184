"""Whole networks with their configurations."""

from verim.models.config import BlockConfig, LanguageModelConfig
from verim.models.language_model import Block, LanguageModel
from verim.models.sizes import ARCHITECTURES, architecture_config

__all__ = ["ARCHITECTURES", "Block", "BlockConfig", "LanguageModel", "LanguageModelConfig", "architecture_config"]
