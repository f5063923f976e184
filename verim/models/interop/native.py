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
        fields.without_effect("tie_word_embeddings", "vocab_size", "hidden_size", "num_hidden_layers", "auto_map")
        return LanguageModelConfig.from_json(value)

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        return {
            "model": config.to_json(),
            "vocab_size": config.vocab,
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "tie_word_embeddings": config.tied,
        }

    def weights(self, model: LanguageModel) -> Iterator[Weight]:
        for name in own_tensors(model):
            yield Weight(name, (f"model.{name}",))


NATIVE = NativeLayout()
