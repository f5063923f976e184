"""Llama and what shares its layout: SmolLM and SmolLM2 (which are Llama), Mistral, Qwen2."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from verim.errors import InputError
from verim.models.config import BlockConfig, LanguageModelConfig
from verim.models.interop.family import Family, Weight, check, only_block
from verim.models.interop.fields import Fields
from verim.models.language_model import LanguageModel
from verim.nn import NormConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig

_LLAMA3 = {
    "low_freq_factor": "rotary_low",
    "high_freq_factor": "rotary_high",
    "original_max_position_embeddings": "rotary_context",
}


@dataclass(frozen=True)
class LlamaLayout(Family):
    """Attention with rotary positions, pairing channel i with i + head_dim / 2, then SwiGLU; RMS norms.

    What differs: `biases`: `attention_bias` and `mlp_bias` are fields; `qkv_bias`: queries, keys and values always have
    a bias; `window`: the default of the field `sliding_window`, None where there is no such field.
    """

    name: str
    architecture: str
    biases: bool = False
    qkv_bias: bool = False
    window: int | None = None

    def read(self, fields: Fields) -> LanguageModelConfig:
        width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
        kv_heads = fields.whole("num_key_value_heads", heads if self.biases else None)
        head_dim = fields.whole("head_dim", width // heads)
        attention_bias, feed_forward_bias = self.qkv_bias, False
        if self.biases:
            attention_bias, feed_forward_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
        window = 0
        if self.window is not None:
            window = 0 if fields.is_null("sliding_window") else fields.whole("sliding_window", self.window)
        else:
            fields.only("use_sliding_window", False)
            if fields.any("use_sliding_window") is None:
                fields.only("sliding_window")
            fields.without_effect("sliding_window", "max_window_layers")
        if fields.any("layer_types"):
            fields.only("layer_types", ["full_attention"] * fields.whole("num_hidden_layers"))
        fields.only("hidden_act", "silu", "swish")
        fields.only("attention_dropout", 0)
        fields.only("rope_interleaved", False)
        fields.only("partial_rotary_factor", 1)
        fields.without_effect("pretraining_tp", "is_llama_config")
        context = fields.whole("max_position_embeddings", 2048)
        attention = AttentionConfig(
            heads,
            kv_heads=0 if kv_heads == heads else kv_heads,
            head_dim=0 if head_dim * heads == width else head_dim,
            window=window,
            bias=attention_bias,
            out_bias=attention_bias and not self.qkv_bias,
            **_read_rotary(fields, context),
        )
        return LanguageModelConfig(
            (BlockConfig(attention, SwiGLUConfig(fields.whole("intermediate_size"), feed_forward_bias)),),
            width,
            depth=fields.whole("num_hidden_layers"),
            vocab=fields.whole("vocab_size"),
            norm=NormConfig("rms", fields.number("rms_norm_eps", 1e-6)),
            tied=fields.flag("tie_word_embeddings", False),
            context=context,
        )

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        block = only_block(self.name, config, AttentionConfig, SwiGLUConfig)
        attention, feed_forward = block.mixer, block.feed_forward
        assert isinstance(attention, AttentionConfig) and isinstance(feed_forward, SwiGLUConfig)
        check(self.name, "norm.kind", config.norm.kind, "rms")
        check(self.name, "embedding_norm", config.embedding_norm, False)
        value = {
            "hidden_size": config.width,
            "intermediate_size": feed_forward.hidden,
            "num_hidden_layers": config.depth,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads or attention.heads,
            "head_dim": attention.head_dim or config.width // attention.heads,
            "hidden_act": "silu",
            "vocab_size": config.vocab,
            "max_position_embeddings": config.context or 2048,
            "rms_norm_eps": config.norm.eps,
            "tie_word_embeddings": config.tied,
            **_write_rotary(attention),
        }
        if self.biases:
            check(self.name, "out_bias", attention.out_bias, attention.bias)
            value |= {"attention_bias": attention.bias, "mlp_bias": feed_forward.bias}
            if config.width % attention.heads:
                raise InputError(
                    f"heads: got {attention.heads} for width {config.width}, but {self.name} in transformers wants a "
                    "divisor of the width, also where head_dim is given"
                )
        else:
            check(self.name, "bias", attention.bias, self.qkv_bias)
            check(self.name, "out_bias", attention.out_bias, False)
            check(self.name, "feed_forward.bias", feed_forward.bias, False)
        if self.window is not None:
            value["sliding_window"] = attention.window or None
        else:
            check(self.name, "window", attention.window, 0)
        return value

    def weights(self, model: LanguageModel) -> Iterator[Weight]:
        config = model.config
        yield Weight("embedding.weight", ("model.embed_tokens.weight",))
        for index in range(config.depth):
            block = config.block(index)
            attention, feed_forward = block.mixer, block.feed_forward
            assert isinstance(attention, AttentionConfig) and isinstance(feed_forward, SwiGLUConfig)
            ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
            head_dim = attention.head_dim or config.width // attention.heads
            kv_rows = (attention.kv_heads or attention.heads) * head_dim
            qkv = tuple(f"{theirs}self_attn.{part}_proj" for part in "qkv")
            halves = tuple(f"{theirs}mlp.{part}_proj" for part in ("gate", "up"))
            layers = (
                ("mixer.qkv", qkv, (attention.heads * head_dim, kv_rows, kv_rows)),
                ("mixer.out", (f"{theirs}self_attn.o_proj",), ()),
                ("feed_forward.gate_and_in", halves, (feed_forward.hidden,) * 2),
                ("feed_forward.out", (f"{theirs}mlp.down_proj",), ()),
            )
            for name, parts, rows in layers:
                for kind in ("weight", "bias"):
                    yield Weight(f"{ours}{name}.{kind}", tuple(f"{part}.{kind}" for part in parts), rows)
            yield Weight(f"{ours}mixer_norm.gain", (f"{theirs}input_layernorm.weight",))
            yield Weight(f"{ours}feed_forward_norm.gain", (f"{theirs}post_attention_layernorm.weight",))
        yield Weight("norm.gain", ("model.norm.weight",))
        yield Weight("head.weight", ("lm_head.weight",))

    def is_derived(self, name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq")


LLAMA = LlamaLayout("llama", "LlamaForCausalLM", biases=True)
MISTRAL = LlamaLayout("mistral", "MistralForCausalLM", window=4096)
QWEN2 = LlamaLayout("qwen2", "Qwen2ForCausalLM", qkv_bias=True)


def _read_rotary(fields: Fields, context: int) -> dict[str, Any]:
    """The rotary fields of `AttentionConfig`; transformers 5 writes rope_parameters, earlier ones two fields."""
    given = dict(fields.any("rope_parameters") or fields.any("rope_scaling") or {})
    fields.without_effect("rope_scaling")
    base = fields.number("rope_theta", 10_000.0)
    result = {"rotary_base": float(given.pop("rope_theta", None) or base)}
    older = given.pop("type", "default")
    kind = given.pop("rope_type", older)
    if kind not in ("default", "linear", "llama3"):
        raise InputError(f"{fields.place}, rope_type: got {kind!r}, supported are 'default', 'linear' and 'llama3'")
    try:
        if kind != "default":
            result["rotary_factor"] = float(given.pop("factor"))
        if kind == "llama3":
            given.setdefault("original_max_position_embeddings", context)
            result |= {ours: given.pop(theirs) for theirs, ours in _LLAMA3.items()}
    except KeyError as error:
        raise InputError(f"{fields.place}, rope_parameters: rope_type {kind!r} needs {error}") from None
    given = {name: value for name, value in given.items() if value not in (None, 1)}
    if given:
        name, value = next(iter(given.items()))
        raise InputError(
            f"{fields.place}, rope_parameters.{name}: got {value!r}, not supported with rope_type {kind!r}"
        )
    return result


def _write_rotary(attention: AttentionConfig) -> dict[str, Any]:
    """In the two fields that all versions of transformers read."""
    value: dict[str, Any] = {"rope_theta": attention.rotary_base}
    if attention.rotary_factor != 1:
        scaling = {"rope_type": "linear", "factor": attention.rotary_factor}
        if attention.rotary_context:
            scaling["rope_type"] = "llama3"
            scaling |= {theirs: getattr(attention, ours) for theirs, ours in _LLAMA3.items()}
        value["rope_scaling"] = scaling
    return value
