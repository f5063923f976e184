import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from verim.errors import InputError
from verim.models import ARCHITECTURES, BlockConfig, LanguageModel, LanguageModelConfig, architecture_config
from verim.nn import GELUConfig, NormConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MambaConfig

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def tiny(architecture: str, width: int = 32) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(architecture_config(architecture, width)).eval()


@each_architecture
def test_loss_starts_at_log_vocabulary(architecture: str) -> None:
    logits, _ = tiny(architecture)(torch.randint(0, 256, (2, 9)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 256, (18,)))
    assert loss.item() == pytest.approx(math.log(256), abs=0.2)


@each_architecture
def test_prefill_and_decoding_equal_the_whole(architecture: str) -> None:
    model, tokens = tiny(architecture), torch.randint(0, 256, (2, 12))
    for block in model.blocks:  # at the start some products are zero, and everything would be equal
        torch.nn.init.normal_(block.mixer.out.weight, std=0.2)
    torch.nn.init.normal_(model.head.weight, std=0.2)
    with torch.no_grad():
        whole, _ = model(tokens)
        logits, states = model(tokens[:, :5])
        steps = [logits]
        for token in tokens[:, 5:].split(1, dim=1):
            logits, states = model(token, states)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


@each_architecture
@pytest.mark.parametrize("width", [8, 24, 40, 64])
def test_configuration_survives_json_and_counts_add_up(architecture: str, width: int) -> None:
    config = architecture_config(architecture, width)
    assert LanguageModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    counts = tiny(architecture, width).parameter_count()
    assert counts.total - counts.non_embedding == 256 * width


def test_transformer_flops_equal_those_that_torch_counts() -> None:
    model = tiny("transformer", 48)
    length, batch = 16, 3
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.randint(0, 256, (batch, length)))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 256, (batch * length,))).backward()
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(count for name, count in counts.items() if name.startswith("aten") or "attention" in name)
    assert model.flops(length) == pytest.approx(counted / (batch * length), rel=1e-9)


HYBRID = LanguageModelConfig(
    pattern=(
        BlockConfig(MambaConfig(state=4)),
        BlockConfig(AttentionConfig(heads=4, kv_heads=2, window=3), SwiGLUConfig(hidden=24, bias=True)),
        BlockConfig(AttentionConfig(heads=2), GELUConfig(hidden=40)),
    ),
    width=16,
    depth=5,
    vocab=50,
    norm=NormConfig("layer", 1e-5),
    tied=True,
    embedding_norm=True,
    context=128,
)


def test_a_hybrid_repeats_its_pattern_survives_json_and_decodes_as_it_reads() -> None:
    torch.manual_seed(0)
    model, tokens = LanguageModel(HYBRID), torch.randint(0, 50, (2, 11))
    kinds = [type(block.mixer).__name__ for block in model.blocks]
    assert kinds == ["Mamba", "Attention", "Attention", "Mamba", "Attention"]
    assert LanguageModelConfig.from_json(json.loads(json.dumps(HYBRID.to_json()))) == HYBRID
    assert model.head.weight is model.embedding.weight
    assert model.parameter_count().total == sum(weight.numel() for weight in model.parameters())
    with torch.no_grad():
        whole, end = model(tokens)
        logits, state = model(tokens[:, :4], last=1)
        assert logits.shape == (2, 1, 50)
        rest, state = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([logits, rest], dim=1), whole[:, 3:], rtol=1e-4, atol=1e-5)
    assert end.bytes() == state.bytes() == model.state_bytes(2, 11)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("depth", 0), ("vocab", 1), ("context", -1), ("pattern", ())]
)
def test_impossible_configurations_name_the_field(field: str, value: object) -> None:
    good = {"pattern": (BlockConfig(AttentionConfig(heads=1)),), "width": 8, "depth": 1}
    with pytest.raises(InputError, match=f"{field}: got {len(value) if isinstance(value, tuple) else value}"):
        LanguageModelConfig(**(good | {field: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": 3}, "pattern: expected a list"),
        (
            {"pattern": [{"mixer": {"kind": "perceptron"}}]},
            r"pattern\[0\].mixer.kind: got 'perceptron', expected one of",
        ),
        ({"pattern": [{"mixer": {"kind": "mamba", "stat": 4}}]}, r"pattern\[0\].mixer.stat: unknown; expected some of"),
        ({"pattern": [{"mixer": {"kind": "attention"}}]}, r"pattern\[0\].mixer: .*heads"),
        ({"widht": 8}, "model.widht: unknown"),
        ({"norm": {"kind": "batch"}}, "norm.kind: got 'batch'"),
    ],
)
def test_what_a_stored_configuration_has_wrong_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LanguageModelConfig.from_json(HYBRID.to_json() | change)


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'perceptron', expected one of transformer, mamba, mor"):
        architecture_config("perceptron", 8)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="heads: got 3 for width 16"):
        AttentionConfig(heads=3).build(16)
