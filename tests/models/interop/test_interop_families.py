"""For each family: logits equal to those of `transformers`, from theirs to ours and back, at odd sizes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.models.interop import FAMILIES, Tokenizer, end_tokens, load, load_tokenizer, save
from verim.models.interop.fields import Fields
from verim.nn import FEED_FORWARDS, NormConfig
from verim.nn.mixers import MIXERS

LLAMA = {
    "vocab_size": 37,
    "hidden_size": 20,
    "intermediate_size": 27,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
RWKV = {"vocab_size": 29, "hidden_size": 14, "num_hidden_layers": 3, "context_length": 32}
MAMBA = {"vocab_size": 31, "hidden_size": 18, "num_hidden_layers": 2, "state_size": 5}
MAMBA2 = MAMBA | {"num_heads": 6, "head_dim": 6, "n_groups": 2, "chunk_size": 8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA | {"num_attention_heads": 5, "num_key_value_heads": 5}),
    "llama, grouped, other head_dim, biases, tied": (
        "Llama",
        LLAMA | {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama, one key head, base 500": ("Llama", LLAMA | {"num_key_value_heads": 1, "head_dim": 8, "rope_theta": 500.0}),
    "llama, linear scaling": ("Llama", LLAMA | {"head_dim": 8, "rope_parameters": LINEAR}),
    "llama 3.1 scaling": ("Llama", LLAMA | {"head_dim": 8, "rope_parameters": LLAMA3}),
    "mistral, window, heads do not divide": (
        "Mistral",
        LLAMA | {"num_attention_heads": 6, "head_dim": 4, "sliding_window": 5},
    ),
    "mistral, no window": ("Mistral", LLAMA | {"head_dim": 10, "sliding_window": None}),
    "qwen2": ("Qwen2", LLAMA | {"head_dim": 6, "tie_word_embeddings": True}),
    "mamba": ("Mamba", MAMBA),
    "mamba, biases": ("Mamba", MAMBA | {"use_bias": True, "time_step_rank": 3, "tie_word_embeddings": False}),
    "mamba2": ("Mamba2", MAMBA2),
    "mamba2, groups, biases, limits, tied": (
        "Mamba2",
        MAMBA2 | {"n_groups": 3, "use_bias": True, "time_step_limit": [0.01, 0.5], "tie_word_embeddings": True},
    ),
    "mamba2, one group, no bias at all": ("Mamba2", MAMBA2 | {"n_groups": 1, "use_conv_bias": False, "conv_kernel": 3}),
    "rwkv": ("Rwkv", RWKV | {"rescale_every": 0}),
    "rwkv, inner width, rescaled, tied": (
        "Rwkv",
        RWKV | {"attention_hidden_size": 26, "intermediate_size": 11, "rescale_every": 2, "tie_word_embeddings": True},
    ),
    "mamba, no bias at all": ("Mamba", MAMBA | {"use_conv_bias": False, "expand": 3, "conv_kernel": 3}),
}
each_case = pytest.mark.parametrize("case", CASES)


def reference(case: str) -> Any:
    """A model of `transformers` whose weights are all random, norms and biases too."""
    name, values = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def tokens_for(vocab: int) -> torch.Tensor:
    return torch.randint(0, vocab, (2, 23), generator=torch.Generator().manual_seed(1))


def assert_same(ours: LanguageModel, theirs: Any) -> None:
    tokens = tokens_for(ours.config.vocab)
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        got, _ = ours(tokens)
    assert expected.std() > 0.1
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < 2e-5, error


@each_case
def test_logits_are_those_of_transformers_and_the_export_loads_there(case: str, tmp_path: Path) -> None:
    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert_same(ours, theirs)
    save(ours, tmp_path / "ours", family=theirs.config.model_type)
    back, details = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(theirs)
    assert not any(details.values()), details
    assert_same(ours, back)
    again = load(tmp_path / "ours")
    assert dataclasses.asdict(again.config) == dataclasses.asdict(ours.config)
    for (name, weight), (_, other) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_every_family_is_covered() -> None:
    covered = {getattr(transformers, f"{name}Config").model_type for name, _ in CASES.values()}
    assert covered | {"verim"} == set(FAMILIES)


SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "vocab_size": 49152,
}
MAMBA_130M = {
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "d_inner": 1536,
    "d_model": 768,
    "eos_token_id": 0,
    "expand": 2,
    "fused_add_norm": True,
    "hidden_act": "silu",
    "hidden_size": 768,
    "initializer_range": 0.1,
    "intermediate_size": 1536,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba",
    "n_layer": 24,
    "num_hidden_layers": 24,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "state_size": 16,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 48,
    "time_step_scale": 1.0,
    "torch_dtype": "float32",
    "transformers_version": "4.39.0.dev0",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 50280,
}


@pytest.mark.parametrize(("values", "millions"), [(SMOLLM2_135M, 134.5), (MAMBA_130M, 129.1)])
def test_published_configurations_are_known_whole(values: dict[str, Any], millions: float) -> None:
    fields = Fields(values)
    config = FAMILIES[values["model_type"]].read(fields)
    fields.finish()  # a field that is not known warns, and that fails here
    with torch.device("meta"):
        assert LanguageModel(config).parameter_count().total == pytest.approx(millions * 1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("mixer", "feed_forward"),
    sorted({(kind, "gelu") for kind in MIXERS} | {("attention", kind) for kind in FEED_FORWARDS}),
)
def test_our_layout_keeps_every_kind_of_layer(mixer: str, feed_forward: str, tmp_path: Path) -> None:
    mixer_config, feed_forward_config = (
        kind(**{field.name: 4 for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING})
        for kind in (MIXERS[mixer], FEED_FORWARDS[feed_forward])
    )
    torch.manual_seed(0)
    block = BlockConfig(mixer_config, feed_forward_config)
    model = LanguageModel(LanguageModelConfig((block,), width=64, depth=2, vocab=11, norm=NormConfig("layer"))).eval()
    torch.nn.init.normal_(model.head.weight)
    save(model, tmp_path / "model", "verim")
    back = load(tmp_path / "model")
    assert back.config == model.config and back.state_dict().keys() == model.state_dict().keys()
    tokens = tokens_for(11)
    with torch.no_grad():
        assert torch.equal(model(tokens)[0], back(tokens)[0])


def test_the_tokenizer_travels(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "<end>": 3}, [("a", "b")]))
    library.add_special_tokens(["<end>"])
    pattern = FAMILIES["mamba"].read(Fields(MAMBA)).pattern
    model = LanguageModel(LanguageModelConfig(pattern, width=8, depth=1, vocab=4))
    save(model, tmp_path / "model", tokenizer=Tokenizer(library), end=3)
    tokenizer, theirs = (
        load_tokenizer(tmp_path / "model"),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    assert tokenizer.encode("abba<end>") == theirs("abba<end>").input_ids == [2, 1, 0, 3]
    assert tokenizer.decode([2, 1, 3]).replace(" ", "") == "abb<end>"
    assert end_tokens(tmp_path / "model") == (3,)


def test_a_residual_stream_in_halves_is_told(tmp_path: Path) -> None:
    reference("mamba").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="residual_in_fp32: the residual stream is torch.bfloat16"):
        load(tmp_path, torch.bfloat16)
