"""Our models as models of `transformers`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.models.interop import load, save
from verim.models.interop.transformers_model import VerimConfig, VerimForCausalLM, as_transformers
from verim.nn import RWKV4ChannelMixConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig, Mamba2Config, MambaConfig, RWKV4Config

ATTENTION = BlockConfig(AttentionConfig(heads=2, kv_heads=1), SwiGLUConfig(12))
PATTERNS = {
    "attention": (ATTENTION,),
    "hybrid": (BlockConfig(MambaConfig(state=3)), BlockConfig(AttentionConfig(heads=2, window=4), SwiGLUConfig(12))),
    "recurrent": (
        BlockConfig(RWKV4Config(), RWKV4ChannelMixConfig()),
        BlockConfig(Mamba2Config(state=4, head_dim=4)),
    ),
}
each_pattern = pytest.mark.parametrize("pattern", PATTERNS)
VOCAB = 23


def build(pattern: str, tied: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(PATTERNS[pattern], width=8, depth=2, vocab=VOCAB, tied=tied))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def greedy(model: LanguageModel, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """The most likely tokens, each from the whole text before it."""
    with torch.no_grad():
        for _ in range(count):
            prompt = torch.cat([prompt, model(prompt)[0][:, -1:].argmax(-1)], dim=1)
    return prompt


@each_pattern
@pytest.mark.parametrize("tied", [False, True])
def test_saved_by_either_side_it_loads_on_the_other(pattern: str, tied: bool, tmp_path: Path) -> None:
    model, x = build(pattern, tied), tokens(2, 9)
    expected = model(x)[0]
    save(model, tmp_path / "ours", "verim")
    wrapper, details = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert isinstance(wrapper, VerimForCausalLM) and not any(details.values()), details
    assert (wrapper.model.head.weight is wrapper.model.embedding.weight) == tied
    torch.testing.assert_close(wrapper(x).logits, expected)
    wrapper.save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs")
    assert back.config == model.config
    torch.testing.assert_close(back(x)[0], expected)


@each_pattern
def test_generate_with_the_state_equals_reading_everything_again(pattern: str) -> None:
    model = build(pattern)
    wrapper, x = as_transformers(model), tokens(2, 6)
    assert wrapper.model is model
    expected = greedy(model, x, 7)
    for use_cache in (True, False):
        got = wrapper.generate(x, max_new_tokens=7, do_sample=False, use_cache=use_cache)
        assert torch.equal(got, expected), use_cache


@each_pattern
def test_padding_at_the_start_of_rows_changes_nothing(pattern: str) -> None:
    model = build(pattern)
    wrapper, x = as_transformers(model), tokens(3, 7)
    mask = torch.ones_like(x)
    mask[0, :4], mask[2, :1] = 0, 0
    got = wrapper.generate(x, attention_mask=mask, max_new_tokens=5, do_sample=False)
    logits = wrapper(x, attention_mask=mask).logits
    for row, start in enumerate((4, 0, 1)):
        alone = x[row : row + 1, start:]
        assert torch.equal(got[row : row + 1, start:], greedy(model, alone, 5))
        torch.testing.assert_close(logits[row : row + 1, start:], model(alone)[0], rtol=1e-4, atol=1e-5)


@each_pattern
def test_beams_carry_their_states(pattern: str) -> None:
    wrapper, x = as_transformers(build(pattern)), tokens(2, 6)
    options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    assert torch.equal(wrapper.generate(x, **options), wrapper.generate(x, use_cache=False, **options))


def test_the_loss_is_the_mean_over_labels_and_its_gradients_arrive() -> None:
    model = build("hybrid").train()
    wrapper, x = as_transformers(model), tokens(2, 9)
    assert wrapper.training
    labels = x.clone()
    labels[0, :5] = -100
    output = wrapper(x, labels=labels)
    assert output.state is None
    logits = model(x)[0][:, :-1].flatten(0, 1)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()))
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    loss, logits = wrapper(x, labels=labels, return_dict=False)
    torch.testing.assert_close((loss, logits), (output.loss, output.logits))


def test_the_trainer_of_transformers_trains_and_evaluates_it(tmp_path: Path) -> None:
    wrapper = as_transformers(build("hybrid"))
    rows = [{"input_ids": row, "labels": row} for row in tokens(8, 12)]
    options = TrainingArguments(
        str(tmp_path),
        max_steps=40,
        learning_rate=0.02,
        report_to=[],
        use_cpu=True,
        save_steps=20,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = Trainer(wrapper, options, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    assert load(tmp_path / "checkpoint-40").config == wrapper.model.config


def test_only_the_logits_asked_for() -> None:
    wrapper, x = as_transformers(build("hybrid")), tokens(2, 9)
    whole = wrapper(x).logits
    torch.testing.assert_close(wrapper(x, logits_to_keep=2).logits, whole[:, -2:])
    torch.testing.assert_close(wrapper(x, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])


def test_padding_at_the_end_needs_no_mask_but_for_a_state() -> None:
    wrapper, x = as_transformers(build("attention")), tokens(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(wrapper(x, attention_mask=mask).logits, wrapper(x).logits)
    with pytest.raises(InputError, match="expected it at the start of rows"):
        wrapper(x, attention_mask=mask, use_cache=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 8)}, "inputs_embeds: got Tensor, but"),
        ({"output_hidden_states": True}, "output_hidden_states: got bool"),
        ({"position_ids": torch.tensor([[0, 1, 0]])}, r"position_ids: got rows of several sequences \(packing\)"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "or between them"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "attention_mask: got 4 dimensions"),
    ],
    ids=["embeds", "hidden", "packed", "holes", "4d"],
)
def test_what_it_does_not_take_is_named(arguments: dict[str, Any], message: str) -> None:
    wrapper = as_transformers(build("attention"))
    with pytest.raises(InputError, match=message):
        wrapper(tokens(1, 3), **arguments)
    with pytest.raises(InputError, match="input_ids: got None"):
        wrapper()
    with pytest.raises(InputError, match=r"config.model: got None"):
        VerimForCausalLM(VerimConfig())


@pytest.mark.parametrize("tied", [False, True])
def test_the_vocabulary_may_grow(tied: bool, tmp_path: Path) -> None:
    wrapper, x = as_transformers(build("attention", tied)), tokens(1, 4)
    before = wrapper(x).logits
    wrapper.resize_token_embeddings(VOCAB + 2, mean_resizing=False)
    torch.testing.assert_close(wrapper(x).logits[..., :VOCAB], before)
    wrapper.save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").config.vocab == VOCAB + 2
