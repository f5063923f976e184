"""Mamba-2, as `transformers` lays it out."""

import math
from collections.abc import Iterator
from typing import Any

from verim.errors import InputError
from verim.models.config import BlockConfig, LanguageModelConfig
from verim.models.interop.family import Family, Weight, check, only_block
from verim.models.interop.fields import Fields
from verim.models.language_model import LanguageModel
from verim.nn import NormConfig
from verim.nn.mixers import Mamba2Config

_NAMES = {
    "into.weight": "in_proj.weight",
    "into.bias": "in_proj.bias",
    "convolution_bias": "conv1d.bias",
    "delta_bias": "dt_bias",
    "log_decay": "A_log",
    "skip": "D",
    "gain": "norm.weight",
    "out.weight": "out_proj.weight",
    "out.bias": "out_proj.bias",
}
_NO_LIMIT = 1e38  # JSON has no infinity


class Mamba2Layout(Family):
    """Blocks of one mixer each, RMS norms with one eps for all; the gate comes before the norm inside the mixer."""

    name = "mamba2"
    architecture = "Mamba2ForCausalLM"

    def read(self, fields: Fields) -> LanguageModelConfig:
        width, eps = fields.whole("hidden_size"), fields.number("layer_norm_epsilon", 1e-5)
        expand, head_dim = fields.whole("expand", 2), fields.whole("head_dim", 64)
        fields.only("num_heads", expand * width // head_dim)
        fields.only("intermediate_size", expand * width)
        fields.only("hidden_act", "silu", "swish")
        fields.only("rms_norm", True)
        fields.without_effect(
            # the residual stream has the weights' type here: float32 but where the caller asks for less
            "residual_in_fp32",
            # how fresh weights are drawn, how transformers computes the scan, and what it reads no more
            *("time_step_rank", "time_step_floor", "rescale_prenorm_residual", "chunk_size", "norm_before_gate"),
        )
        least, most = _limits(fields)
        mixer = Mamba2Config(
            state=fields.whole("state_size", 128),
            head_dim=head_dim,
            groups=fields.whole("n_groups", 8),
            expand=expand,
            kernel=fields.whole("conv_kernel", 4),
            delta_min=fields.number("time_step_min", 0.001),
            delta_max=fields.number("time_step_max", 0.1),
            delta_least=least,
            delta_most=most,
            eps=eps,
            bias=fields.flag("use_bias", False),
            convolution_bias=fields.flag("use_conv_bias", True),
        )
        return LanguageModelConfig(
            (BlockConfig(mixer),),
            width,
            depth=fields.whole("num_hidden_layers"),
            vocab=fields.whole("vocab_size"),
            norm=NormConfig("rms", eps),
            tied=fields.flag("tie_word_embeddings", False),
        )

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        mixer = only_block(self.name, config, Mamba2Config, None).mixer
        assert isinstance(mixer, Mamba2Config)
        check(self.name, "norm.kind", config.norm.kind, "rms")
        check(self.name, "embedding_norm", config.embedding_norm, False)
        check(self.name, "gate_first", mixer.gate_first, True)
        check(self.name, "eps", mixer.eps, config.norm.eps)
        value = {
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "vocab_size": config.vocab,
            "state_size": mixer.state,
            "num_heads": mixer.expand * config.width // mixer.head_dim,
            "head_dim": mixer.head_dim,
            "n_groups": mixer.groups,
            "expand": mixer.expand,
            "conv_kernel": mixer.kernel,
            "time_step_min": mixer.delta_min,
            "time_step_max": mixer.delta_max,
            "use_bias": mixer.bias,
            "use_conv_bias": mixer.convolution_bias,
            "hidden_act": "silu",
            "layer_norm_epsilon": config.norm.eps,
            "tie_word_embeddings": config.tied,
        }
        if mixer.delta_least or mixer.delta_most:
            value["time_step_limit"] = [mixer.delta_least, mixer.delta_most or _NO_LIMIT]
        return value

    def weights(self, model: LanguageModel) -> Iterator[Weight]:
        config = model.config
        yield Weight("embedding.weight", ("backbone.embeddings.weight",))
        for index in range(config.depth):
            mixer = config.block(index).mixer
            assert isinstance(mixer, Mamba2Config)
            ours, theirs = f"blocks.{index}.mixer.", f"backbone.layers.{index}.mixer."
            mixed = mixer.expand * config.width + 2 * mixer.groups * mixer.state
            yield Weight(f"{ours}convolution", (f"{theirs}conv1d.weight",), shape=(mixed, 1, mixer.kernel))
            for name, their_name in _NAMES.items():
                yield Weight(ours + name, (theirs + their_name,))
            yield Weight(f"blocks.{index}.mixer_norm.gain", (f"backbone.layers.{index}.norm.weight",))
        yield Weight("norm.gain", ("backbone.norm_f.weight",))
        yield Weight("head.weight", ("lm_head.weight",))


MAMBA2 = Mamba2Layout()


def _limits(fields: Fields) -> tuple[float, float]:
    """The field time_step_limit as `delta_least` and `delta_most`."""
    limits = fields.any("time_step_limit", [0.0, math.inf])
    # transformers 5 writes infinity as an object
    numbers = [float(value["__float__"]) if isinstance(value, dict) else value for value in limits]
    if len(numbers) != 2 or not all(isinstance(number, int | float) for number in numbers):
        raise InputError(f"{fields.place}, time_step_limit: got {limits!r}, expected two numbers")
    least, most = map(float, numbers)
    return least, 0.0 if most >= _NO_LIMIT else most
