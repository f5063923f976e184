"""On Gaussians and mixtures, whose scores and normalisers are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.models.energy import (
    Energy,
    contrastive_divergence,
    denoising_score_matching,
    noise_contrastive,
    score_matching,
    sliced_score_matching,
)

DEVIATIONS = torch.tensor([0.5, 2.0], dtype=torch.float64)


class Gaussian(nn.Module):
    """E(x) = Σ exp(s_i) (x_i − m_i)² / 2 + c."""

    def __init__(self) -> None:
        super().__init__()
        self.log_precision = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.mean = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.log_precision.exp() * (x - self.mean).square()).sum(-1) / 2 + self.offset


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int = 2000) -> Tensor:
    x = torch.randn(count, 2, dtype=torch.float64, generator=seeded())
    return (x - x.mean(0)) / x.std(0, correction=0) * DEVIATIONS + 1


def fitted(objective: object, steps: int = 150) -> Gaussian:
    model = Gaussian()
    optimiser = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(model).backward()  # type: ignore[operator]
        optimiser.step()
    return model


def test_score_matching_recovers_mean_and_precision() -> None:
    x = rows()
    model = fitted(lambda energy: score_matching(energy, x))
    torch.testing.assert_close(model.mean.detach(), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-2)
    torch.testing.assert_close(model.log_precision.exp().detach(), DEVIATIONS**-2, rtol=1e-2, atol=0)


def test_slices_average_to_score_matching() -> None:
    """Along axes that do not turn signs change nothing; on a turned energy they do so only in the mean."""
    turn = torch.tensor([[1.0, 0.7], [0.2, 1.0]], dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return (x @ turn).cosh().log().sum(-1)

    x = rows(50)
    exact = score_matching(energy, x).item()
    assert sliced_score_matching(energy, x, 400, seeded()).item() == pytest.approx(exact, rel=0.02)
    assert sliced_score_matching(energy, x, 1, seeded()).item() != pytest.approx(exact, rel=1e-4)
    signless = Gaussian()
    assert sliced_score_matching(signless, x, 1).item() == pytest.approx(score_matching(signless, x).item())


def test_denoising_fits_the_blurred_density() -> None:
    x = rows()
    generator = seeded()
    model = fitted(lambda energy: denoising_score_matching(energy, x, 1.0, generator))
    torch.testing.assert_close(model.log_precision.exp().detach(), 1 / (DEVIATIONS**2 + 1), rtol=0.05, atol=0)


def log_normal(x: Tensor) -> Tensor:
    return -x.square().sum(-1) / 18 - math.log(2 * math.pi * 9)


@pytest.mark.parametrize("ratio", [1, 4])
def test_noise_contrast_finds_the_normaliser_too(ratio: int) -> None:
    x = rows()
    noise = 3 * torch.randn(ratio * len(x), 2, dtype=torch.float64, generator=seeded(1))
    model = fitted(lambda energy: noise_contrastive(energy, x, noise, log_normal(x), log_normal(noise)))
    torch.testing.assert_close(model.log_precision.exp().detach(), DEVIATIONS**-2, rtol=0.1, atol=0)
    assert model.offset.item() == pytest.approx(math.log(2 * math.pi), abs=0.07)  # ln Z: 2π σ₁ σ₂ with σ₁ σ₂ = 1


def test_contrastive_divergence_is_the_likelihood_gradient_where_negatives_are_the_models() -> None:
    """Of N(m, 1 / e^s): the gradient of −ln p by m is e^s (m − mean of the data)."""
    model = Gaussian()
    x, own = rows(), torch.randn(200_000, 2, dtype=torch.float64, generator=seeded(2))
    contrastive_divergence(model, x, own).backward()
    assert model.mean.grad is not None and model.offset.grad is not None
    torch.testing.assert_close(model.mean.grad, -torch.ones(2, dtype=torch.float64), rtol=0, atol=0.01)
    assert float(model.offset.grad) == pytest.approx(0)
    assert contrastive_divergence(model, x, x, 0.5).item() == pytest.approx(model(x).square().mean().item())


@pytest.mark.parametrize("energy", [Gaussian(), lambda x: x.square().sum(-1)], ids=["module", "function"])
def test_any_function_is_an_energy(energy: Energy) -> None:
    assert score_matching(energy, rows(10)).isfinite()


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="deviation: got 0"):
        denoising_score_matching(Gaussian(), rows(4), 0.0)
    with pytest.raises(InputError, match="slices: got 0"):
        sliced_score_matching(Gaussian(), rows(4), 0)
    with pytest.raises(InputError, match="a number for each of 4 rows of data and 3 of noise"):
        noise_contrastive(Gaussian(), rows(4), rows(4)[:3], torch.zeros(4), torch.zeros(4))
