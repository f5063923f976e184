"""For each family: logits equal to those of `transformers`, from theirs to ours and back, at odd sizes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from verim.models import LanguageModel
from verim.models.interop import load, save

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
    assert error < 1e-4, error


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
