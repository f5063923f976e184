import math

import pytest
import torch
from torch import Tensor

from verim.errors import InputError
from verim.models.energy import (
    RestrictedBoltzmannMachine,
    annealed_log_partition,
    contrastive_divergence,
    exact_log_partition,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def machine(visible: int, hidden: int, labels: int = 0, scale: float = 1.0) -> RestrictedBoltzmannMachine:
    """One with weights and biases of size `scale`, in float64."""
    made = RestrictedBoltzmannMachine(visible, hidden, labels).double()
    generator = seeded(visible + hidden)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return made


def states(units: int, labels: int = 0) -> Tensor:
    """All rows of zeros and ones, among the labels a single one."""
    pixels = units - labels
    rows = (torch.arange(1 << pixels)[:, None] >> torch.arange(pixels) & 1).double()
    if not labels:
        return rows
    ones = torch.eye(labels, dtype=torch.float64).repeat(len(rows), 1)
    return torch.cat([rows.repeat_interleave(labels, 0), ones], 1)


@pytest.mark.parametrize("labels", [0, 3])
def test_free_energy_and_partition_by_brute_force(labels: int) -> None:
    made = machine(7, 5, labels)
    v, h = states(7, labels), states(5)
    joint = torch.stack([made.energy(v, row.expand(len(v), -1)) for row in h], 1).detach()
    torch.testing.assert_close(made(v).detach(), -(-joint).logsumexp(1))
    assert exact_log_partition(made) == pytest.approx(float((-joint).logsumexp((0, 1))))


@pytest.mark.parametrize("labels", [0, 3])
def test_gibbs_keeps_the_distribution(labels: int) -> None:
    """Rows drawn by exp(−F) / Z are so after a round, and rows from anywhere come to be."""
    made, v = machine(5, 4, labels), states(5, labels)
    p = (-made(v)).softmax(0).detach()
    drawn = v[torch.multinomial(p, 4000, replacement=True, generator=seeded())]
    for rows in (made.walk(drawn, 1, seeded()), made.walk(made.begin(4000, seeded()), 25, seeded(1))):
        found = torch.stack([(rows == state).all(1).double().mean() for state in v])
        assert float((found - p).abs().sum()) < 0.12


def test_gradient_of_contrastive_divergence_is_hintons() -> None:
    """⟨v h⟩ of the negatives less that of the data, with h at its expectation (Hinton 2002, eq. 5)."""
    made, data, negatives = machine(6, 4), states(6)[5:20], states(6)[30:50]
    contrastive_divergence(made, data, negatives).backward()

    def correlation(v: Tensor) -> Tensor:
        return made.hidden_input(v).sigmoid().T @ v / len(v)

    assert made.weights.grad is not None and made.visible_bias.grad is not None
    torch.testing.assert_close(made.weights.grad, (correlation(negatives) - correlation(data)).detach())
    torch.testing.assert_close(made.visible_bias.grad, negatives.mean(0) - data.mean(0))


def test_label_energies_are_free_energies() -> None:
    made, pixels = machine(8, 5, 3), states(5)
    found = made.label_energies(pixels)
    for label in range(3):
        y = torch.full((len(pixels),), label)
        torch.testing.assert_close(found[:, label], made(made.joined(pixels, y)))


@pytest.mark.parametrize(("visible", "hidden", "labels"), [(20, 16, 0), (24, 10, 4), (40, 12, 0)])
def test_annealed_estimate_is_within_a_hundredth_of_the_exact_one(visible: int, hidden: int, labels: int) -> None:
    made = machine(visible, hidden, labels, scale=0.3)
    exact = exact_log_partition(made)
    found = annealed_log_partition(made, 400, 500, generator=seeded())
    assert math.exp(found.value - exact) == pytest.approx(1, abs=0.01)  # Z itself, not its logarithm
    assert 0 < found.error < 0.01 and abs(found.value - exact) < 4 * found.error


def test_the_base_changes_the_path_not_the_end() -> None:
    made = machine(12, 6, scale=0.5)
    base = torch.randn(12, generator=seeded())
    found = annealed_log_partition(made, 400, 500, base, seeded())
    assert found.value == pytest.approx(exact_log_partition(made), abs=max(4 * found.error, 0.01))


def test_machines_without_weights_need_no_annealing() -> None:
    made = RestrictedBoltzmannMachine(10, 8)
    with torch.no_grad():
        made.weights.zero_()
    assert exact_log_partition(made) == pytest.approx(18 * math.log(2))
    found = annealed_log_partition(made, 2, 2)
    assert found.value == pytest.approx(18 * math.log(2)) and found.error == pytest.approx(0)


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="labels a part of the visible"):
        RestrictedBoltzmannMachine(4, 2, 4)
    with pytest.raises(InputError, match="no labels"):
        RestrictedBoltzmannMachine(4, 2).label_energies(torch.zeros(1, 4))
    with pytest.raises(InputError, match="use annealed_log_partition"):
        exact_log_partition(RestrictedBoltzmannMachine(4, 30))
    with pytest.raises(InputError, match="temperatures, chains: got 1"):
        annealed_log_partition(RestrictedBoltzmannMachine(4, 2), 1)
    with pytest.raises(InputError, match=r"base: got shape \(3,\)"):
        annealed_log_partition(RestrictedBoltzmannMachine(4, 2), base=torch.zeros(3))
