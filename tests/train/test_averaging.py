"""The average of the weights against its formula, and where it stands in for them."""

import pytest
import torch
from torch import nn

from verim.errors import InputError
from verim.train.averaging import AveragingConfig


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight  # tied
    return model.to(dtype)


def disturb(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("warmup", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_the_sum_that_the_formula_says(warmup: float, dtype: torch.dtype) -> None:
    model = model_of(dtype)
    average = AveragingConfig(0.9, warmup).build(model)
    expected = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    for step in range(30):
        disturb(model, step)
        average.update()
        decay = min(0.9, (1 + step) / (warmup + step)) if warmup else 0.9
        for name, weight in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach().double()
    for name, value in average.tensors().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_the_block_the_model_is_the_average_and_afterwards_itself(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    average = AveragingConfig(0.9).build(model)
    disturb(model, 0)
    average.update()
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    identities = [id(weight) for weight in model.parameters()]

    def look() -> None:
        with average.applied():
            for name, weight in model.named_parameters():
                assert torch.equal(weight, average.tensors()[name].to(dtype)) and not torch.equal(weight, own[name])
            assert model[2].weight is model[0].weight
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # an error inside changes nothing
        look()
    assert identities == [id(weight) for weight in model.parameters()]
    for name, weight in model.named_parameters():
        assert torch.equal(weight, own[name])


def test_evaluation_writes_into_neither() -> None:
    """What reads the weights inside the block must not be able to move the average."""
    model = model_of()
    average = AveragingConfig().build(model)
    before = {name: value.clone() for name, value in average.tensors().items()}
    with average.applied(), pytest.raises(AssertionError, match="averages"):
        average.update()
    assert all(torch.equal(value, before[name]) for name, value in average.tensors().items())


def test_restored_goes_on_with_the_same_bits() -> None:
    model, config = model_of(), AveragingConfig(0.99)
    whole = config.build(model)
    for step in range(4):
        disturb(model, step)
        whole.update()
    kept, updates = {name: value.clone() for name, value in whole.tensors().items()}, whole.updates
    resumed = config.build(model)
    resumed.restore(kept, updates)
    for step in range(4, 8):
        disturb(model, step)
        whole.update()
        resumed.update()
    assert all(torch.equal(value, resumed.tensors()[name]) for name, value in whole.tensors().items())


def test_memory_is_four_bytes_a_weight_and_tied_weights_count_once() -> None:
    assert AveragingConfig().build(model_of()).bytes() == 4 * (5 * 4 + 4 + 4)
    assert AveragingConfig().build(model_of(torch.bfloat16)).bytes() == 4 * (5 * 4 + 4 + 4)


def test_averages_of_another_model_are_refused() -> None:
    average = AveragingConfig().build(model_of())
    tensors = average.tensors()
    with pytest.raises(InputError, match=r"0.weight has shape \(1,\) in the checkpoint, expected \(5, 4\)"):
        average.restore(tensors | {"0.weight": torch.zeros(1)}, 3)
    with pytest.raises(InputError, match="other is in one of both alone"):
        average.restore(tensors | {"other": torch.zeros(1)}, 3)


@pytest.mark.parametrize(
    ("field", "value"), [("decay", 1.0), ("decay", -0.1), ("warmup", 0.5), ("warmup", float("inf"))]
)
def test_impossible_fields_are_named(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field}: got {value}"):
        AveragingConfig(**{field: value})
