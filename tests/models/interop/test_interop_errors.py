"""What is wrong with a checkpoint is named; nothing half-written is left; other types of numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from verim.errors import CorruptError, InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.models.interop import checkpoint, end_tokens, load, load_tokenizer, save
from verim.nn import GELUConfig, NormConfig, RWKV4ChannelMixConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MambaConfig, RWKV4Config


def llama(**fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    block = BlockConfig(AttentionConfig(heads=2, kv_heads=1), SwiGLUConfig(hidden=12))
    model = LanguageModel(LanguageModelConfig((block,), width=8, depth=2, vocab=17, **fields))
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(llama(), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **fields: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(values))


def change_tensors(folder: Path, remove: str = "", **tensors: torch.Tensor) -> None:
    held = load_file(folder / "model.safetensors") | tensors
    held.pop(remove, None)
    save_file(held, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "perceptron"}, r"model_type: got 'perceptron', expected one of llama, mistral, .*verim"),
        ({"hidden_act": "gelu"}, "config.json, hidden_act: got 'gelu', supported is only 'silu' or 'swish'"),
        ({"sliding_window": 4}, "sliding_window: got 4"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: got {'bits': 4}"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor: got 0.5"),
        ({"attention_dropout": 0.1}, r"attention_dropout: got 0.1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type: got 'yarn', supported are"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 3.0}}, r"mscale: got 3.0, not supported"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "8"}, "hidden_size: got '8', expected a whole number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: got 1, expected true or false"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: got 'small', expected a number"),
        ({"hidden_size": 10}, r"embed_tokens.weight has shape \[17, 8\], expected \[17, 10\] by its configuration"),
        ({"vocab_size": 18}, r"embed_tokens.weight has shape \[17, 8\], expected \[18, 8\]"),
        ({"num_key_value_heads": 2}, r"layers.0.self_attn.k_proj.weight has shape \[4, 8\], expected \[8, 8\]"),
        ({"num_hidden_layers": 3}, r"lacks what .* asks for: model.layers.2.self_attn.q_proj.weight, .* and 6 more"),
        ({"num_hidden_layers": 1}, r"holds what .* no place for: model.layers.1.* and 6 more"),
        ({"attention_bias": True}, r"lacks .*: model.layers.0.self_attn.q_proj.bias"),
        ({"tie_word_embeddings": True}, r"lm_head.weight differs from model.embed_tokens.weight"),
    ],
    ids=str,
)
def test_configurations_that_cannot_work_name_the_field_or_the_tensor(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    change_config(folder, **fields)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon: got 0.001, supported is only 1e-05"),
        ({"attention_hidden_size": 6}, r"time_decay has shape \[8\], expected \[6\]"),
    ],
)
def test_rwkv_refuses_what_transformers_would_mix(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    block = BlockConfig(RWKV4Config(), RWKV4ChannelMixConfig())
    config = LanguageModelConfig(
        (block,), width=8, depth=1, vocab=9, norm=NormConfig("layer", 1e-5), embedding_norm=True
    )
    save(LanguageModel(config), tmp_path / "model")
    change_config(tmp_path / "model", **fields)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "model")


def test_unknown_fields_are_told(folder: Path) -> None:
    change_config(folder, logit_softening=2.0)
    with pytest.warns(UserWarning, match="config.json: logit_softening: not known here, not used"):
        load(folder)


def test_tensors_that_are_missing_or_too_many_are_named(folder: Path) -> None:
    change_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)})  # older ones have it
    load(folder)
    change_tensors(folder, **{"model.layers.0.self_attn.q_norm.weight": torch.zeros(4)})
    with pytest.raises(InputError, match=r"no place for: model.layers.0.self_attn.q_norm.weight$"):
        load(folder)
    save(llama(), folder.with_name("other"))
    change_tensors(folder.with_name("other"), remove="model.norm.weight")
    with pytest.raises(InputError, match=r"other: lacks what its configuration asks for: model.norm.weight$"):
        load(folder.with_name("other"))


def test_a_tied_head_may_be_there_once_more(tmp_path: Path) -> None:
    model = llama(tied=True)
    save(model, tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    change_tensors(tmp_path / "model", **{"lm_head.weight": model.embedding.weight.detach().clone()})
    back = load(tmp_path / "model")
    assert back.head.weight is back.embedding.weight


def test_pickled_weights_are_refused_with_what_to_do(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickled \(pytorch_model.bin\), and unpickling can run any code. Convert"):
        load(folder)


def test_what_is_not_there_or_damaged_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere, expected a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no tokenizer.json"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"tokenizer.json is no tokenizer"):
        load_tokenizer(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CorruptError, match=r"model.safetensors is cut short or is no safetensors file") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(InputError, match=r"holds neither model.safetensors nor model.safetensors.index.json"):
        load(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CorruptError, match=r"config.json holds a list, expected an object"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds no config.json"):
        load(folder)


def test_shards_come_back_and_a_missing_one_is_named(tmp_path: Path) -> None:
    model = llama()
    save(model, tmp_path / "model", shard_bytes=1000)
    shards = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    back = load(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    index = tmp_path / "model" / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["model.ghost"] = shards[0]
    index.write_text(json.dumps(places))
    with pytest.raises(CorruptError, match=r"lacks the tensor model.ghost that model.safetensors.index.json says"):
        load(tmp_path / "model")
    (tmp_path / "model" / shards[1]).unlink()
    with pytest.raises(InputError, match=f"lacks {shards[1]}"):
        load(tmp_path / "model")


def test_nothing_is_left_of_a_save_that_fails_and_nothing_is_overwritten(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="exists already"):
        save(llama(), folder)
    (tmp_path / "empty").mkdir()
    save(llama(), tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        save(llama(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_load_as_float32_unless_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = llama().to(dtype)
    save(model, tmp_path / "model", end=3)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {dtype}
    assert end_tokens(tmp_path / "model") == (3,)
    wide, kept = load(tmp_path / "model"), load(tmp_path / "model", dtype=dtype)
    for before, whole, half in zip(model.parameters(), wide.parameters(), kept.parameters(), strict=True):
        assert whole.dtype == torch.float32 and torch.equal(whole, before.float())
        assert half.dtype == dtype and torch.equal(half, before)


@pytest.mark.parametrize(
    ("block", "fields", "message"),
    [
        (BlockConfig(AttentionConfig(heads=2)), {}, r"pattern\[0\].feed_forward: got none, but llama has SwiGLUConfig"),
        (BlockConfig(AttentionConfig(heads=2), GELUConfig(8)), {}, "got GELUConfig, but llama has SwiGLUConfig"),
        (BlockConfig(MambaConfig()), {"norm": NormConfig("layer")}, "norm.kind: got 'layer', but mamba has 'rms'"),
        (BlockConfig(MambaConfig()), {"embedding_norm": True}, "embedding_norm: got True, but mamba has False"),
    ],
    ids=["none", "gelu", "norm", "embedding_norm"],
)
def test_a_model_that_no_family_holds_says_why_and_our_layout_keeps_it(
    tmp_path: Path, block: BlockConfig, fields: dict[str, Any], message: str
) -> None:
    model = LanguageModel(LanguageModelConfig((block,), width=8, depth=2, vocab=9, **fields))
    with pytest.raises(InputError, match=message) as caught:
        save(model, tmp_path / "model")
    assert "family='verim' keeps any model" in str(caught.value)
    assert save(model, tmp_path / "model", "verim") == "verim"
    assert load(tmp_path / "model").config == model.config


def test_blocks_that_differ_are_refused(tmp_path: Path) -> None:
    blocks = tuple(BlockConfig(AttentionConfig(heads=2, window=w), SwiGLUConfig(8)) for w in (0, 4))
    model = LanguageModel(LanguageModelConfig(blocks, width=8, depth=2, vocab=9))
    with pytest.raises(
        InputError, match=r"pattern\[1\]: differs from pattern\[0\], but all blocks of mistral are alike"
    ):
        save(model, tmp_path / "model", "mistral")
    with pytest.raises(InputError, match="family: got 'gpt9', expected one of llama"):
        save(model, tmp_path / "model", "gpt9")


@pytest.mark.parametrize(
    ("attention", "family"),
    [
        (AttentionConfig(heads=2), "llama"),
        (AttentionConfig(heads=2, window=3), "mistral"),
        (AttentionConfig(heads=3, head_dim=4), "mistral"),
        (AttentionConfig(heads=2, bias=True), "qwen2"),
        (AttentionConfig(heads=2, bias=True, out_bias=True), "llama"),
    ],
    ids=str,
)
def test_the_family_is_found(tmp_path: Path, attention: AttentionConfig, family: str) -> None:
    config = LanguageModelConfig((BlockConfig(attention, SwiGLUConfig(8)),), width=8, depth=1, vocab=9, context=77)
    assert save(LanguageModel(config), tmp_path / "model") == family
    assert load(tmp_path / "model").config == config
