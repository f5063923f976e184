"""Rules of plasticity: against the eigenvectors that they find, and the threshold that slides."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.neuro import BCM, Hebb, Oja, Sanger, Subspace
from verim.neuro.plasticity import inverse_decay


def angle(first: Tensor, second: Tensor) -> float:
    """The largest principal angle between the spans of rows, in degrees."""
    one, other = (torch.linalg.qr(rows.T.double()).Q for rows in (first, second))
    outside = torch.linalg.matrix_norm(other - one @ (one.T @ other), 2)
    return math.degrees(math.asin(min(1.0, float(outside))))


def leading(x: Tensor, count: int) -> Tensor:
    return torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:count]


def gaussian(samples: int, deviations: Tensor, seed: int = 0, mean: float = 3.0) -> Tensor:
    """Normal samples with these deviations along directions drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    size = len(deviations)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    return mean + (torch.randn(samples, size, generator=generator) * deviations) @ directions.T


def bars(orientations: int = 8, size: int = 9) -> Tensor:
    """Bars through the middle of an image, at equal angles [orientations, size²]."""
    places = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    angles = torch.arange(orientations) * math.pi / orientations
    across = x * torch.sin(angles)[:, None, None] - y * torch.cos(angles)[:, None, None]
    return torch.exp(-across.square()).flatten(1)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_hebbs_growth_rate_is_the_largest_eigenvalue(seed: int, scale: float) -> None:
    x = gaussian(200, scale * torch.tensor([2.0, 1.0, 0.5, 0.2]), seed, mean=0.0).double()
    second_moment = x.T @ x / len(x)
    largest = float(torch.linalg.eigvalsh(second_moment)[-1])
    rate = 0.01 / largest
    hebb = Hebb(rate, batch=len(x)).fit(x, epochs=2500)
    assert hebb.log_norm_ > 20  # without bound
    growth = hebb.partial_fit(x).growth_rate_
    assert growth == pytest.approx(math.log1p(rate * largest) / rate, rel=1e-6)
    assert growth == pytest.approx(largest, rel=0.006)
    assert angle(hebb.components_, torch.linalg.eigh(second_moment).eigenvectors[:, -1:].T) < 0.1  # type: ignore[arg-type]


def test_hebb_online_grows_as_fast() -> None:
    x = gaussian(2000, torch.tensor([2.0, 1.0, 0.5]), mean=0.0)
    largest = float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])
    hebb = Hebb(1e-3).fit(x).partial_fit(x)
    assert hebb.growth_rate_ == pytest.approx(largest, rel=0.05)


@pytest.mark.parametrize("batch", [1, 32])
def test_oja_finds_the_first_component_with_norm_one(batch: int) -> None:
    x = gaussian(1500, torch.tensor([2.0, 1.0, 0.8, 0.5, 0.1]))
    oja = Oja(inverse_decay(0.02 * batch**0.5, 1000), batch).fit(x, epochs=5)
    assert angle(oja.components_, leading(x, 1)) < 1
    assert float(oja.components_.norm()) == pytest.approx(1, abs=0.01)
    assert oja.transform(x).var() == pytest.approx(float(torch.linalg.eigvalsh(x.T.cov())[-1]), rel=0.02)


def test_ojas_own_rate_is_in_units_of_the_data() -> None:
    """Not adaptive: the paper's formula, a step at a time."""
    x = gaussian(50, torch.tensor([1.0, 0.5, 0.2])).double()
    oja = Oja(0.01, is_adaptive=False, is_centred=False).partial_fit(x[:1])
    w = oja.components_[0]
    for sample in x[1:]:
        y = w @ sample
        w = w + 0.01 * (sample * y - y**2 * w)
    torch.testing.assert_close(oja.partial_fit(x[1:]).components_[0], w)


@pytest.mark.parametrize("rule", [Oja, Sanger, Subspace])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_adaptive_rates_know_no_scale(rule: Any, scale: float) -> None:
    x = gaussian(500, torch.tensor([2.0, 1.0, 0.5])).double()
    options: dict[str, Any] = {} if rule is Oja else {"components": 2}
    plain, scaled = (rule(rate=0.1, batch=10, **options).fit(data, epochs=2) for data in (x, scale * x))
    torch.testing.assert_close(plain.components_, scaled.components_)


def test_sanger_finds_ten_components_of_a_large_matrix_in_order() -> None:
    x = gaussian(10_000, torch.arange(1, 785).float().pow(-1.0))
    found = Sanger(10, inverse_decay(0.5, 50_000), batch=500).fit(x, epochs=25)
    expected = leading(x, 10)
    assert angle(found.components_, expected) < 1
    for i in range(10):
        assert angle(found.components_[i : i + 1], expected[i : i + 1]) < 1
    torch.testing.assert_close(found.components_.norm(dim=1), torch.ones(10), atol=0.02, rtol=0)
    y = found.transform(x)
    assert y.shape == (10_000, 10) and float(y.T.corrcoef().fill_diagonal_(0).abs().max()) < 0.05


def test_the_subspace_rule_finds_the_subspace_orthonormal() -> None:
    x = gaussian(3000, torch.cat([torch.linspace(2, 1.5, 5), 0.4 * torch.ones(45)]))
    found = Subspace(5, inverse_decay(0.5, 10_000), batch=50).fit(x, epochs=20)
    assert angle(found.components_, leading(x, 5)) < 1
    torch.testing.assert_close(found.components_ @ found.components_.T, torch.eye(5), atol=0.02, rtol=0)


def test_partial_fits_go_on_with_the_mean_of_all() -> None:
    x = gaussian(4000, torch.tensor([2.0, 1.0, 0.5, 0.2]))
    oja = Oja(inverse_decay(0.3, 1000), batch=20)
    for some in x.split(500):
        oja.partial_fit(some)
    torch.testing.assert_close(oja.mean_, x.mean(0), atol=1e-4, rtol=1e-4)
    assert angle(oja.components_, leading(x, 1)) < 2
    assert oja.samples_seen_ == 4000


def test_bcm_neurons_become_selective_to_different_orientations() -> None:
    """Responses are to one pattern alone, as large as it is rare; the threshold is E[y²]."""
    patterns = bars()
    bcm = BCM(8, rate=5e-3, memory=200, inhibition=0.9, batch=8).fit(patterns.repeat(50, 1), epochs=60)
    responses = bcm.transform(patterns)
    assert bcm.selectivity(patterns).min() > 0.8  # of 1 - 1/8 = 0.875 at most
    assert len(responses.argmax(0).unique()) >= 6
    torch.testing.assert_close(bcm.thresholds_, responses.square().mean(0), rtol=0.3, atol=0)
    torch.testing.assert_close(responses.amax(0), torch.full((8,), 8.0), rtol=0.15, atol=0)


def test_bcm_potentiation_gets_harder_in_a_busy_neuron() -> None:
    x = torch.ones(1, 4)
    bcm = BCM(rate=1e-6, memory=10).fit(x)
    change = []
    for busy in (0.5, 3.0):
        bcm.partial_fit(busy * x.repeat(200, 1))
        before = bcm.components_
        bcm.partial_fit(2 * x)
        change.append(float((bcm.components_ - before).sum()))
    assert change[0] > 0 > change[1]


def test_bcm_homeostasis() -> None:
    """Inputs twice as strong: the responses come back to what they were."""
    patterns = torch.eye(3).repeat(100, 1) + 0.1
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    bcm = BCM(rate=5e-3, memory=50).fit(patterns[order], epochs=40)
    before = bcm.transform(patterns[:3]).amax()
    assert bcm.transform(2 * patterns[:3]).amax() > 1.9 * before
    for _ in range(20):
        bcm.partial_fit(2 * patterns[order])
    torch.testing.assert_close(bcm.transform(2 * patterns[:3]).amax(), before, rtol=0.1, atol=0)


@pytest.mark.parametrize("rule", [Hebb, Oja, Sanger, Subspace, BCM])
def test_bad_input_is_named(rule: Any) -> None:
    x = gaussian(20, torch.ones(4))
    with pytest.raises(InputError, match="x holds NaN"):
        rule().fit(torch.full((3, 4), math.nan))
    with pytest.raises(InputError, match="shape"):
        rule().fit(x[0])
    with pytest.raises(InputError, match="fit"):
        rule().transform(x)
    with pytest.raises(InputError, match="batch is 0"):
        rule(batch=0)
    with pytest.raises(InputError, match="rate is -1"):
        rule(rate=-1)
    with pytest.raises(InputError, match="epochs is 0"):
        rule().fit(x, epochs=0)
    with pytest.raises(InputError, match="3 features, expected 4"):
        rule(rate=1e-3).fit(x).partial_fit(x[:, :3])


def test_what_cannot_be_or_diverges_is_said() -> None:
    x = gaussian(100, torch.ones(3))
    with pytest.raises(InputError, match="4 components of 3 features"):
        Sanger(4).fit(x)
    with pytest.raises(InputError, match="diverge at rate 10"):
        Oja(10.0, is_adaptive=False).fit(x)
    with pytest.raises(InputError, match="memory is 5"):
        BCM(batch=10, memory=5)
