"""Experts as the feed-forward layer of models: with any mixer, in training, decoding and storage."""

import json
from pathlib import Path

import pytest
import torch

import verim
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import MixtureOfExperts, MixtureOfExpertsConfig, SwiGLUConfig, auxiliary_losses
from verim.nn.mixers import AttentionConfig, MambaConfig
from verim.runs import RunDirectory
from verim.train import AdamWConfig, ByteLanguageModelling, Trainer, TrainerConfig, WarmupStableDecay
from verim.train.task import next_token_loss

RULES = ("softmax_of_top", "top_of_softmax", "expert_choice")
each_rule = pytest.mark.parametrize("rule", RULES)


def hybrid(rule: str = "softmax_of_top", width: int = 32) -> LanguageModelConfig:
    """Mamba with experts, attention with experts, Mamba alone."""
    experts = MixtureOfExpertsConfig(experts=6, hidden=24, routing=rule, shared=1)  # type: ignore[arg-type]
    return LanguageModelConfig(
        pattern=(
            BlockConfig(MambaConfig(state=4), experts),
            BlockConfig(AttentionConfig(heads=2), experts),
            BlockConfig(MambaConfig(state=4)),
        ),
        width=width,
        depth=4,
    )


def experts_of(model: LanguageModel) -> list[MixtureOfExperts]:
    return [layer for layer in model.layers() if isinstance(layer, MixtureOfExperts)]


def source_bytes() -> torch.Tensor:
    """Real bytes: this package's own text."""
    files = sorted(Path(verim.__file__).parent.rglob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


def trainer(directory: Path, rule: str, steps: int) -> Trainer:
    torch.manual_seed(0)
    text = source_bytes()[:60_000]
    task = ByteLanguageModelling(text[:-4000], text[-4000:], batch=8, length=32, seed=0, evaluation_bytes=2000)
    schedule = WarmupStableDecay(steps, warmup=2, decay=steps // 3)
    config = TrainerConfig(AdamWConfig(learning_rate=0.01), schedule, checkpoint_seconds=0.0)
    return Trainer(LanguageModel(hybrid(rule)), task, config, RunDirectory(directory))


def test_a_hybrid_with_experts_survives_json_and_decodes_as_it_reads() -> None:
    for rule in RULES:
        config = hybrid(rule)
        assert LanguageModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
        torch.manual_seed(0)
        model, tokens = LanguageModel(config).eval(), torch.randint(0, 256, (2, 11))
        torch.nn.init.normal_(model.head.weight, std=0.2)
        with torch.no_grad():
            whole, _ = model(tokens)
            logits, state = model(tokens[:, :4])
            parts = [logits]
            for token in tokens[:, 4:].split(1, dim=1):
                logits, state = model(token, state)
                parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_active_weights_leave_out_the_experts_that_a_token_does_not_go_to() -> None:
    counts = LanguageModel(hybrid()).parameter_count()
    assert counts.total - counts.active == 3 * (6 - 2) * 3 * 32 * 24
    assert counts.non_embedding == counts.total - 256 * 32
    dense = LanguageModel(LanguageModelConfig((BlockConfig(MambaConfig(), SwiGLUConfig(hidden=24)),), 32, 2))
    assert dense.parameter_count().active == dense.parameter_count().total


def test_stacks_start_and_learn_as_the_matrices_they_are() -> None:
    torch.manual_seed(0)
    model = LanguageModel(hybrid(width=64))
    layer = experts_of(model)[1]
    into, out = layer.gate_and_in.weight, layer.out.weight
    assert into.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert out.std().item() == pytest.approx((2 * 4 * 24) ** -0.5, rel=0.05)
    groups = AdamWConfig(learning_rate=0.01).build(model).param_groups
    found = {name: g for g in groups for name, w in (("into", into), ("out", out)) if any(w is p for p in g["params"])}
    assert found["into"]["base_rate"] == pytest.approx(0.01 * 32 / 64) and found["into"]["weight_decay"] == 0.1
    assert found["out"]["base_rate"] == pytest.approx(0.01 * 32 / 24) and found["out"]["weight_decay"] == 0.1


def test_the_task_adds_the_auxiliary_losses_of_all_layers_in_training_and_none_in_evaluation(tmp_path: Path) -> None:
    held = trainer(tmp_path, "softmax_of_top", steps=8)
    batch = held.task.batch(0)
    with torch.no_grad(), auxiliary_losses() as losses:
        plain = next_token_loss(held.model, *batch)
    assert len(losses) == 3 and all(loss > 0.01 for loss in losses)
    torch.testing.assert_close(held.task.loss(held.model, batch).detach(), plain + sum(losses))
    assert held.evaluate()["bits_per_byte"] == pytest.approx(8, abs=1e-5)  # the head starts at zero: log2(256)


@each_rule
def test_training_on_real_bytes_learns_and_keeps_all_experts_in_use(rule: str, tmp_path: Path) -> None:
    held = trainer(tmp_path, rule, steps=50)
    with held.run.writing():
        result = held.train({})
    assert result["bits_per_byte"] < 4.8
    for layer in experts_of(held.model):  # type: ignore[arg-type]
        assert layer.routing is not None
        share = layer.routing.wanted / layer.routing.wanted.sum()
        assert share.min() > 0.2 / 6, share


def test_resumed_equals_never_stopped_to_the_bit_with_the_thresholds_of_expert_choice(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(record: dict[str, float]) -> None:
        if record["step"] == 4:
            raise StoppedError

    whole = trainer(tmp_path / "whole", "expert_choice", steps=8)
    with whole.run.writing():
        result = whole.train({})
    stopped = trainer(tmp_path / "parts", "expert_choice", steps=8)
    with pytest.raises(StoppedError), stopped.run.writing():
        stopped.train({}, stop)
    resumed = trainer(tmp_path / "parts", "expert_choice", steps=8)
    with resumed.run.writing():
        assert resumed.train({})["bits_per_byte"] == result["bits_per_byte"]
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
