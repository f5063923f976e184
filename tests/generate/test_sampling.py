import pytest
import torch

from verim.errors import InputError
from verim.generate import sample
from verim.models import ARCHITECTURES, LanguageModel, architecture_config

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def model_of(architecture: str) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(architecture_config(architecture, 16))
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


@each_architecture
def test_greedy_tokens_are_those_of_the_whole_sequence(architecture: str) -> None:
    model, prompt = model_of(architecture), torch.randint(0, 256, (2, 5))
    drawn = sample(model, prompt, 6, temperature=0)
    tokens = prompt
    with torch.no_grad():
        for _ in range(6):
            tokens = torch.cat([tokens, model(tokens)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(tokens[:, 5:], drawn)


@each_architecture
def test_a_seed_fixes_the_sample(architecture: str) -> None:
    model, prompt = model_of(architecture), torch.randint(0, 256, (1, 5))
    assert torch.equal(sample(model, prompt, 20, seed=3), sample(model, prompt, 20, seed=3))
    assert not torch.equal(sample(model, prompt, 20, seed=3), sample(model, prompt, 20, seed=4))


def test_draws_follow_the_softmax() -> None:
    model = model_of("transformer")
    prompt = torch.tensor([[7]]).expand(4000, 1)
    drawn = sample(model, prompt, 1, temperature=1.5, seed=0)[:, 0]
    with torch.no_grad():
        expected = (model(prompt[:1])[0][0, -1] / 1.5).softmax(-1)
    observed = torch.bincount(drawn, minlength=256) / len(drawn)
    assert (observed - expected).abs().sum() / 2 < 0.12  # total variation; 0.09 is what 4000 draws leave


@pytest.mark.parametrize(
    ("prompt", "temperature", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), 1.0, "prompt: got no token"),
        (torch.tensor([[256]]), 1.0, "expected 0 to 255"),
        (torch.tensor([[1]]), -1.0, "temperature: got -1.0"),
    ],
)
def test_bad_input_is_named(prompt: torch.Tensor, temperature: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample(model_of("transformer"), prompt, 3, temperature)
