import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.models.energy import descend, gibbs, langevin
from verim.models.energy.inference import annealed


def bowl(y: Tensor) -> Tensor:
    return (y - 2).square().sum(-1) / 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_descent_finds_the_lowest_and_keeps_what_is_known() -> None:
    start = torch.zeros(3, 4)
    free = torch.tensor([True, False, True, True])
    found = descend(bowl, start, 200, 0.1, free, bounds=(0.0, 1.5))
    assert found.tolist() == [[1.5, 0.0, 1.5, 1.5]] * 3 and not start.any()
    torch.testing.assert_close(descend(bowl, start, 200, 0.1), torch.full((3, 4), 2.0))
    assert torch.equal(descend(bowl, start, 0, 0.1), start)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.5), st.integers(0, 30))
def test_small_steps_never_climb(rate: float, steps: int) -> None:
    start = torch.randn(5, 3, dtype=torch.float64, generator=seeded())

    def energy(y: Tensor) -> Tensor:
        return y.cos().sum(-1)

    assert bool((energy(descend(energy, start, steps, rate)) <= energy(start) + 1e-12).all())


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_langevin_has_the_variance_that_its_steps_give(temperature: float) -> None:
    """Unadjusted, on y² / 2: T / (1 − rate / 2) exactly."""
    start = torch.zeros(20_000, 1, dtype=torch.float64)
    drawn = langevin(bowl, start, 30, 0.4, (temperature, temperature), seeded())
    assert float(drawn.mean()) == pytest.approx(2, abs=0.05)
    assert float(drawn.var()) == pytest.approx(temperature / (1 - 0.2), rel=0.04)


def test_annealing_finds_the_deeper_of_two_valleys() -> None:
    def energy(y: Tensor) -> Tensor:
        y = y[:, 0]
        return 2 * (y.square() - 1).square() + y

    start = torch.ones(200, 1)
    stuck = descend(energy, start, 100, 0.01)
    found = langevin(energy, start, 400, 0.02, (4.0, 0.1), seeded())
    assert bool((stuck > 0).all()) and float((found < 0).float().mean()) > 0.8


def test_temperatures_run_from_first_to_last() -> None:
    assert [annealed((4.0, 1.0), step, 3) for step in range(3)] == pytest.approx([4, 2, 1])
    assert [annealed((4.0, 0.0), step, 3) for step in range(3)] == [4, 2, 0]
    assert annealed((3.0, 1.0), 0, 1) == pytest.approx(3)


def test_gibbs_draws_what_enumeration_says() -> None:
    """Four units with random couplings: every one of 16 states as often as exp(−E) / Z."""
    coupling = torch.randn(4, 4, generator=seeded(1))

    def energy(y: Tensor) -> Tensor:
        return ((y @ coupling) * y).sum(-1)

    states = (torch.arange(16)[:, None] >> torch.arange(4) & 1).float()
    expected = (-energy(states)).softmax(0)
    drawn = gibbs(energy, torch.zeros(20_000, 4), 15, generator=seeded())
    places = (drawn.long() << torch.arange(4)).sum(-1)
    found = torch.bincount(places, minlength=16) / len(drawn)
    assert float((found - expected).abs().sum()) < 0.03
    held = gibbs(energy, torch.ones(50, 4), 5, free=torch.tensor([True, False, True, False]), generator=seeded())
    assert bool((held[:, [1, 3]] == 1).all())
    coldest = gibbs(energy, torch.zeros(200, 4), 60, (4.0, 0.0), seeded())
    lowest = float((energy(coldest) == energy(states).min()).float().mean())
    assert lowest > 0.9


def test_an_energy_that_returns_part_of_its_input() -> None:
    drawn = gibbs(lambda y: y[:, 0], torch.ones(20_000, 1), 1, generator=seeded())
    assert float(drawn.mean()) == pytest.approx(1 / (1 + math.e), abs=0.02)


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="diverge"):
        descend(bowl, torch.zeros(1, 1), 300, 3.0)
    with pytest.raises(InputError, match="steps: got -1"):
        descend(bowl, torch.zeros(1, 1), -1, 0.1)
    with pytest.raises(InputError, match="rate and temperatures"):
        langevin(bowl, torch.zeros(1, 1), 1, 0.0)
    with pytest.raises(InputError, match="zeros and ones"):
        gibbs(bowl, torch.full((1, 2), 0.5), 1)
