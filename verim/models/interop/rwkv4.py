"""RWKV-4, as `transformers` and the checkpoints RWKV/rwkv-4-* lay it out."""

from collections.abc import Iterator
from typing import Any

from verim.models.config import BlockConfig, LanguageModelConfig
from verim.models.interop.family import Family, Weight, check, only_block
from verim.models.interop.fields import Fields
from verim.models.language_model import LanguageModel
from verim.nn import NormConfig, RWKV4ChannelMixConfig
from verim.nn.mixers import RWKV4Config

_TIME_MIX = {
    "log_decay": "time_decay",
    "bonus": "time_first",
    "receptance.weight": "receptance.weight",
    "key.weight": "key.weight",
    "value.weight": "value.weight",
    "out.weight": "output.weight",
}
_NORMS = {"mixer_norm": "ln1", "feed_forward_norm": "ln2"}
_EPS = 1e-5


class RWKV4Layout(Family):
    """Time mix and channel mix, layer norms, one of them behind the embedding.

    `rescale_every` is not needed: transformers halves the residual stream and what is added to it every so many
    layers, so that it fits in float16. But for the eps of the norms, which weighs more against a halved stream, that
    changes no logit; exports ask for none of it.
    """

    name = "rwkv"
    architecture = "RwkvForCausalLM"

    def read(self, fields: Fields) -> LanguageModelConfig:
        width = fields.whole("hidden_size")
        inner = fields.whole("attention_hidden_size", width)
        hidden = fields.whole("intermediate_size", 4 * width)
        # transformers gives the last norm this one, whatever the field says
        fields.only("layer_norm_epsilon", _EPS)
        fields.without_effect("rescale_every")
        block = BlockConfig(
            RWKV4Config(0 if inner == width else inner), RWKV4ChannelMixConfig(0 if hidden == 4 * width else hidden)
        )
        return LanguageModelConfig(
            (block,),
            width,
            depth=fields.whole("num_hidden_layers"),
            vocab=fields.whole("vocab_size"),
            norm=NormConfig("layer", _EPS),
            tied=fields.flag("tie_word_embeddings", False),
            embedding_norm=True,
            context=fields.whole("context_length", fields.whole("max_position_embeddings", 1024)),
        )

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        block = only_block(self.name, config, RWKV4Config, RWKV4ChannelMixConfig)
        mixer, feed_forward = block.mixer, block.feed_forward
        assert isinstance(mixer, RWKV4Config) and isinstance(feed_forward, RWKV4ChannelMixConfig)
        check(self.name, "norm", config.norm, NormConfig("layer", _EPS))
        check(self.name, "embedding_norm", config.embedding_norm, True)
        return {
            "hidden_size": config.width,
            "attention_hidden_size": mixer.inner or config.width,
            "intermediate_size": feed_forward.hidden or 4 * config.width,
            "num_hidden_layers": config.depth,
            "vocab_size": config.vocab,
            "context_length": config.context or 1024,
            "layer_norm_epsilon": _EPS,
            "rescale_every": 0,
            "tie_word_embeddings": config.tied,
        }

    def weights(self, model: LanguageModel) -> Iterator[Weight]:
        shape = (1, 1, model.config.width)
        yield Weight("embedding.weight", ("rwkv.embeddings.weight",))
        yield from _norm("embedding_norm", "rwkv.blocks.0.pre_ln")
        for index in range(model.config.depth):
            ours, theirs = f"blocks.{index}.", f"rwkv.blocks.{index}."
            for name, their_name in _NORMS.items():
                yield from _norm(ours + name, theirs + their_name)
            mixes = tuple(f"{theirs}attention.time_mix_{part}" for part in ("receptance", "key", "value"))
            yield Weight(f"{ours}mixer.shift.mix", mixes, (1, 1, 1), shape)
            for name, their_name in _TIME_MIX.items():
                yield Weight(f"{ours}mixer.{name}", (f"{theirs}attention.{their_name}",))
            mixes = tuple(f"{theirs}feed_forward.time_mix_{part}" for part in ("receptance", "key"))
            yield Weight(f"{ours}feed_forward.shift.mix", mixes, (1, 1), shape)
            for part in ("receptance", "key", "value"):
                yield Weight(f"{ours}feed_forward.{part}.weight", (f"{theirs}feed_forward.{part}.weight",))
        yield from _norm("norm", "rwkv.ln_out")
        yield Weight("head.weight", ("head.weight",))


RWKV4 = RWKV4Layout()


def _norm(ours: str, theirs: str) -> Iterator[Weight]:
    for kind in ("weight", "bias"):
        yield Weight(f"{ours}.{kind}", (f"{theirs}.{kind}",))
