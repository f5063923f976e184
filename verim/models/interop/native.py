"""Our own layout: any model of ours, its configuration in one field of config.json, its tensors by our names."""

from collections.abc import Iterator
from typing import Any

from verim.errors import InputError
from verim.models.config import LanguageModelConfig
from verim.models.interop.family import Family, Weight, own_tensors
from verim.models.interop.fields import Fields
from verim.models.language_model import LanguageModel


class NativeLayout(Family):
    """What `verim.models.interop.transformers_model` reads and writes too."""

    name = "verim"
    architecture = "VerimForCausalLM"

    def read(self, fields: Fields) -> LanguageModelConfig:
        value = fields.any("model")
        if not isinstance(value, dict):
            raise InputError(f"{fields.place}, model: got {value!r}, expected the configuration of a model of Verim")
        config = LanguageModelConfig.from_json(value)
        fields.without_effect(*self.write(config), "auto_map")
        return config

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        return {
            "model": config.to_json(),
            "vocab_size": config.vocab,
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "max_position_embeddings": config.context or 2048,
            "tie_word_embeddings": config.tied,
        }

    def weights(self, model: LanguageModel) -> Iterator[Weight]:
        for name in own_tensors(model):
            yield Weight(name, (f"model.{name}",))


NATIVE = NativeLayout()
