"""Mamba, as `transformers` and the checkpoints state-spaces/mamba-*-hf lay it out."""

import math
from collections.abc import Iterator
from typing import Any

from verim.models.config import BlockConfig, LanguageModelConfig
from verim.models.interop.family import Family, Weight, check, only_block
from verim.models.interop.fields import Fields
from verim.models.language_model import LanguageModel
from verim.nn import NormConfig
from verim.nn.mixers import MambaConfig

_NAMES = {
    "into.weight": "in_proj.weight",
    "into.bias": "in_proj.bias",
    "convolution_bias": "conv1d.bias",
    "select.weight": "x_proj.weight",
    "delta.weight": "dt_proj.weight",
    "delta.bias": "dt_proj.bias",
    "log_decay": "A_log",
    "skip": "D",
    "out.weight": "out_proj.weight",
    "out.bias": "out_proj.bias",
}


class MambaLayout(Family):
    """Blocks of one mixer each, RMS norms, a head that is the embedding unless `tie_word_embeddings` says otherwise."""

    name = "mamba"
    architecture = "MambaForCausalLM"

    def read(self, fields: Fields) -> LanguageModelConfig:
        width = fields.whole("hidden_size")
        expand, rank = fields.whole("expand", 2), fields.any("time_step_rank")
        rank = 0 if rank in (None, "auto") else fields.whole("time_step_rank")
        fields.only("intermediate_size", expand * width)
        fields.only("hidden_act", "silu", "swish")
        fields.without_effect(
            # the residual stream has the weights' type here: float32 but where the caller asks for less
            "residual_in_fp32",
            # how fresh weights are drawn, how transformers computes the scan, and older names of what is read above
            *("time_step_scale", "time_step_init_scheme", "time_step_floor", "rescale_prenorm_residual"),
            *("use_mambapy", "use_associative_scan", "d_inner", "d_model", "n_layer", "fused_add_norm"),
            "pad_vocab_size_multiple",
        )
        fields.only("ssm_cfg", {})
        fields.only("rms_norm", True)
        mixer = MambaConfig(
            fields.whole("state_size", 16),
            expand,
            fields.whole("conv_kernel", 4),
            0 if rank == math.ceil(width / 16) else rank,
            fields.number("time_step_min", 0.001),
            fields.number("time_step_max", 0.1),
            fields.flag("use_bias", False),
            fields.flag("use_conv_bias", True),
        )
        return LanguageModelConfig(
            (BlockConfig(mixer),),
            width,
            depth=fields.whole("num_hidden_layers"),
            vocab=fields.whole("vocab_size"),
            norm=NormConfig("rms", fields.number("layer_norm_epsilon", 1e-5)),
            tied=fields.flag("tie_word_embeddings", True),
        )

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        mixer = only_block(self.name, config, MambaConfig, None).mixer
        assert isinstance(mixer, MambaConfig)
        check(self.name, "norm.kind", config.norm.kind, "rms")
        check(self.name, "embedding_norm", config.embedding_norm, False)
        return {
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "vocab_size": config.vocab,
            "state_size": mixer.state,
            "expand": mixer.expand,
            "conv_kernel": mixer.kernel,
            "time_step_rank": mixer.rank or math.ceil(config.width / 16),
            "time_step_min": mixer.delta_min,
            "time_step_max": mixer.delta_max,
            "use_bias": mixer.bias,
            "use_conv_bias": mixer.convolution_bias,
            "hidden_act": "silu",
            "layer_norm_epsilon": config.norm.eps,
            "tie_word_embeddings": config.tied,
        }

    def weights(self, model: LanguageModel) -> Iterator[Weight]:
        config = model.config
        yield Weight("embedding.weight", ("backbone.embeddings.weight",))
        for index in range(config.depth):
            mixer = config.block(index).mixer
            assert isinstance(mixer, MambaConfig)
            ours, theirs = f"blocks.{index}.mixer.", f"backbone.layers.{index}.mixer."
            kernel = (mixer.expand * config.width, 1, mixer.kernel)
            yield Weight(f"{ours}convolution", (f"{theirs}conv1d.weight",), shape=kernel)
            for name, their_name in _NAMES.items():
                yield Weight(ours + name, (theirs + their_name,))
            yield Weight(f"blocks.{index}.mixer_norm.gain", (f"backbone.layers.{index}.norm.weight",))
        yield Weight("norm.gain", ("backbone.norm_f.weight",))
        yield Weight("head.weight", ("lm_head.weight",))

    def aliases(self) -> dict[str, str]:
        return {"backbone.embedding.weight": "backbone.embeddings.weight"}


MAMBA = MambaLayout()
