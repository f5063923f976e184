import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from verim.errors import InputError
from verim.models import ARCHITECTURES, LanguageModel, LanguageModelConfig, architecture_config
from verim.nn.mixers import AttentionConfig

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def tiny(architecture: str, width: int = 32) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(architecture_config(architecture, width))


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


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("depth", 0), ("hidden", -1), ("vocab", 1)])
def test_impossible_configurations_name_the_field(field: str, value: int) -> None:
    good = {"mixer": AttentionConfig(heads=1), "width": 8, "depth": 1, "hidden": 16, "vocab": 256}
    with pytest.raises(InputError, match=f"{field}: got {value}"):
        LanguageModelConfig(**(good | {field: value}))


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'perceptron', expected one of transformer, mamba"):
        architecture_config("perceptron", 8)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="heads: got 3 for width 16"):
        AttentionConfig(heads=3).build(16)
