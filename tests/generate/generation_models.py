"""Small models of every mixer, and of patterns that keep their states in other ways, for the tests here."""

import torch

from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import MixtureOfExpertsConfig, RWKV4ChannelMixConfig, RWKV7ChannelMixConfig, SwiGLUConfig
from verim.nn.mixers import MIXERS, AttentionConfig, MambaConfig

VOCAB = 256
_SETTINGS = {"attention": {"heads": 2}, "mamba2": {"head_dim": 8}, "rwkv7": {"head_dim": 8}}
_FEED_FORWARDS = {"rwkv4": RWKV4ChannelMixConfig(24), "rwkv7": RWKV7ChannelMixConfig(24)}
_WINDOW = BlockConfig(AttentionConfig(heads=2, kv_heads=1, window=5), SwiGLUConfig(24))
_OF_MIXERS = {
    name: (BlockConfig(kind(**_SETTINGS.get(name, {})), _FEED_FORWARDS.get(name)),) for name, kind in MIXERS.items()
}
_PATTERNS = {
    "transformer": (BlockConfig(AttentionConfig(heads=1), SwiGLUConfig(40)),),
    "window": (_WINDOW, _WINDOW),
    "hybrid": (BlockConfig(MambaConfig(state=4)), _WINDOW),
    "experts": (BlockConfig(MambaConfig(state=4), MixtureOfExpertsConfig(experts=3, hidden=12)),),
}
MODELS = {
    name: LanguageModelConfig(pattern, width=16, depth=len(pattern) + 1)
    for name, pattern in (_OF_MIXERS | _PATTERNS).items()
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
