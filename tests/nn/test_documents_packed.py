"""Packed documents: a model sees each as if it stood alone, or says that it cannot."""

import pytest
import torch

from verim.data import document_numbers
from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import SwiGLUConfig, within_documents
from verim.nn.along import HERE
from verim.nn.mixers import MIXERS

SIZES = [5, 1, 40, 9, 70]
FITTING = {
    "attention": {"heads": 2},
    "window": {"heads": 4, "kv_heads": 2, "window": 7},
    "min_gru": {"kernel": 0},
    "min_lstm": {"kernel": 0},
}


def model_of(mixer: str, **fields: object) -> LanguageModel:
    kind = MIXERS["attention" if mixer == "window" else mixer]
    torch.manual_seed(0)
    config = LanguageModelConfig((BlockConfig(kind(**fields), SwiGLUConfig(48)),), 32, 2, vocab=50, tied=True)
    return LanguageModel(config)


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of documents in other orders, each document begun by the separator 0."""
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randint(1, 50, (size,), generator=generator) for size in SIZES]
    for part in parts:
        part[0] = 0
    tokens = torch.stack([torch.cat(parts), torch.cat(parts[::-1])])
    return tokens, document_numbers(tokens)


@pytest.mark.parametrize("mixer", FITTING)
def test_packed_is_apart(mixer: str) -> None:
    model = model_of(mixer, **FITTING[mixer])
    tokens, documents = packed()
    with within_documents(model, documents):
        logits, _ = model(tokens)
    crossing, _ = model(tokens)
    for row, sizes in enumerate((SIZES, SIZES[::-1])):
        alone = torch.cat([model(part[None])[0][0] for part in tokens[row].split(sizes)])
        torch.testing.assert_close(logits[row], alone, rtol=2e-4, atol=2e-5)
        assert (crossing[row] - alone).abs().max() > 1e-3
    logits.sum().backward()


@pytest.mark.parametrize("mixer", sorted(MIXERS.keys() - {"attention", "min_gru", "min_lstm"}))
def test_a_mixer_without_a_rule_refuses(mixer: str) -> None:
    model = model_of(mixer, **({"head_dim": 16} if mixer == "rwkv7" else {}))
    tokens, documents = packed()
    message = r"documents: .*expected attention, minGRU or minLSTM as mixers"
    with pytest.raises(InputError, match=message), within_documents(model, documents):
        model(tokens)
    model(tokens[:, :3])


def test_a_state_is_refused_and_all_is_as_before_in_the_end() -> None:
    model = model_of("attention", heads=2)
    tokens, documents = packed()
    _, state = model(tokens)
    with pytest.raises(InputError, match="begin without a state"), within_documents(model, documents):
        model(tokens, state)
    assert all(module.along is HERE for module in model.modules() if hasattr(module, "along"))
    model(tokens, state)
    shorter, message = documents[:, 1:].long(), r"argument documents is torch\.int64 of shape \(2, 124\)"
    with pytest.raises(InputError, match=message), within_documents(model, shorter):
        model(tokens)
