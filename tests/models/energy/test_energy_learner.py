import pytest
import torch
from torch import Tensor

from verim.errors import InputError
from verim.models.energy import (
    EnergyLearner,
    LearnerConfig,
    NeuralEnergy,
    RestrictedBoltzmannMachine,
    WalkConfig,
    convolution_network,
    dense_network,
    exact_log_partition,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bars(count: int) -> tuple[Tensor, Tensor]:
    """Images of 3 × 3 with one of three bars, a tenth of their pixels flipped."""
    y = torch.arange(count) % 3
    x = torch.zeros(count, 3, 3)
    x[torch.arange(count), :, y] = 1
    flipped = torch.rand(count, 9, generator=seeded()) < 0.1
    return torch.where(flipped, 1 - x.flatten(1), x.flatten(1)), y


@pytest.mark.parametrize("persistent", [False, True])
def test_a_machine_learns_the_likelihood(persistent: bool) -> None:
    """ln p of the data, by enumeration: near that of independent pixels at first, far above after."""
    x, _ = bars(300)
    machine = RestrictedBoltzmannMachine(9, 6)
    config = LearnerConfig(epochs=80, batch=50, rate=0.02, steps=2, persistent=persistent, chains=100)
    EnergyLearner(machine, config).fit(x)
    mean = x.mean(0)
    independent = float((mean * mean.log() + (1 - mean) * (1 - mean).log()).sum())
    likelihood = -float(machine(x).mean().detach()) - exact_log_partition(machine)
    assert likelihood > independent + 0.9


def test_labels_by_lowest_energy_with_and_without_the_label_loss() -> None:
    x, y = bars(300)
    for weight in (0.0, 1.0):
        config = LearnerConfig(epochs=40, batch=50, rate=0.02, chains=100, label_weight=weight)
        learner = EnergyLearner(RestrictedBoltzmannMachine(12, 10, 3), config).fit(x[:200], y[:200])
        assert learner.score(x[200:], y[200:]) > 0.9
        assert learner.sample(5).shape == (100, 12)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_a_neural_energy_puts_data_below_noise(kind: str) -> None:
    x, y = bars(120)
    torch.manual_seed(0)
    network = dense_network(9, 3, 32, 1) if kind == "dense" else convolution_network(3, 3, 8)
    model = NeuralEnergy(network, 9, WalkConfig(0.02, (-0.5, 1.5)))
    seen: list[tuple[int, int]] = []
    config = LearnerConfig(
        12, 40, 0.01, steps=5, chains=80, restart=0.05, label_weight=3.0, penalty=0.01, blur=0.1, seed=1
    )
    learner = EnergyLearner(model, config).fit(x, y, lambda epoch, chains: seen.append((epoch, len(chains))))
    assert learner.score(x, y) > 0.9 and seen == [(epoch, 80) for epoch in range(13)]
    with torch.no_grad():
        data, noise = model(x), model(model.begin(200, seeded()))
    assert float(noise.mean() - data.mean()) > 0.3


def test_neural_energies_of_labels_sum_to_those_of_the_input() -> None:
    model = NeuralEnergy(dense_network(4, 3), 4)
    x = torch.rand(5, 4)
    energies = torch.stack([model.energy(x, torch.full((5,), label)) for label in range(3)], 1)
    torch.testing.assert_close(energies, model.label_energies(x))
    torch.testing.assert_close((-energies).exp().sum(1), (-model(x)).exp())


def test_one_seed_one_model() -> None:
    x, y = bars(60)

    def fitted(seed: int) -> Tensor:
        machine = RestrictedBoltzmannMachine(12, 4, 3)
        EnergyLearner(machine, LearnerConfig(2, 20, seed=seed)).fit(x, y)
        return machine.weights.detach()

    assert torch.equal(fitted(1), fitted(1)) and not torch.equal(fitted(1), fitted(2))


def test_bad_input_is_told() -> None:
    learner = EnergyLearner(RestrictedBoltzmannMachine(12, 4, 3), LearnerConfig(1))
    x, y = bars(6)
    with pytest.raises(InputError, match=r"expected floats \[rows, 9\]"):
        learner.fit(x[:, :8], y)
    with pytest.raises(InputError, match=r"expected floats \[rows, 12\]"):
        learner.fit(x)
    with pytest.raises(InputError, match="NaN"):
        learner.fit(x * float("nan"), y)
    with pytest.raises(InputError, match="a label a row"):
        learner.fit(x, y[:3])
    with pytest.raises(InputError, match="labels: got 3, expected 0 to 2"):
        learner.fit(x, y + 1)
    with pytest.raises(InputError, match="diverge"):
        EnergyLearner(NeuralEnergy(dense_network(9, 3), 9), LearnerConfig(3, 6, 1e30, persistent=False)).fit(x, y)
    for wrong in ({"epochs": -1}, {"steps": 0}, {"blur": -1.0}, {"rate": 0.0}, {"restart": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            LearnerConfig(**wrong)
    with pytest.raises(InputError, match="low < high"):
        WalkConfig(bounds=(1.0, 0.0))
