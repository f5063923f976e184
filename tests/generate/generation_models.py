"""Small models of every architecture, and of mixers that keep their states in other ways, for the tests here."""

import torch

from verim.models import ARCHITECTURES, BlockConfig, LanguageModel, LanguageModelConfig, architecture_config
from verim.nn import SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MambaConfig

VOCAB = 256
_WINDOW = BlockConfig(AttentionConfig(heads=2, kv_heads=1, window=5), SwiGLUConfig(24))
MODELS = {name: architecture_config(name, 16) for name in ARCHITECTURES} | {
    "window": LanguageModelConfig((_WINDOW,), 16, 2),
    "hybrid": LanguageModelConfig((BlockConfig(MambaConfig(state=4)), _WINDOW), 16, 4),
}


def build(name: str, seed: int = 0) -> LanguageModel:
    """In float64: no two ways of computing a logit differ by enough to change a draw."""
    torch.manual_seed(seed)
    model = LanguageModel(MODELS[name]).double()
    for layer in model.layers():  # at the start they add little, and every logit would follow from the last token
        for out in layer.writers():
            torch.nn.init.normal_(out.weight, std=0.3)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model
