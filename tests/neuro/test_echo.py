"""Echo state networks: the compiled walk against its definition, what they remember, and what they predict."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.neuro.echo import (
    EchoStateNetwork,
    LinearReservoir,
    RecursiveLeastSquares,
    Reservoir,
    ReservoirConfig,
    TunedRidge,
    lorenz,
    mackey_glass,
    memory_profile,
    narma10,
)
from verim.neuro.echo.step import walk_reference


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 19), st.integers(1, 7), st.integers(1, 33), st.floats(0.01, 1), st.integers(0, 99))
def test_the_compiled_walk_is_the_definition(batch: int, length: int, units: int, leak: float, seed: int) -> None:
    config = ReservoirConfig(2, units, 2, 1.3, 3.0, 0.5, leak, connections=max(1, units // 8), seed=seed)
    reservoir = Reservoir(config)
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(batch, length, 2, generator=generator, dtype=torch.float64)
    first = torch.rand(batch, 2 * units, generator=generator, dtype=torch.float64)
    expected, below = [], u
    for layer in range(2):
        drive = below @ reservoir.input_weights[layer].T + reservoir.biases[layer]
        state = first[:, layer * units : (layer + 1) * units]
        below = walk_reference(drive, reservoir.weights[layer], leak, state)
        expected.append(below)
    found = reservoir.states(u, first)
    torch.testing.assert_close(found, torch.cat(expected, 2), rtol=1e-12, atol=1e-13)
    pieces = [reservoir.states(u[:, :1], first)]
    if length > 1:
        pieces.append(reservoir.states(u[:, 1:], pieces[0][:, -1]))
    torch.testing.assert_close(torch.cat(pieces, 1), found, rtol=1e-12, atol=1e-13)


def test_the_configuration_is_what_is_drawn() -> None:
    reservoir = Reservoir(
        ReservoirConfig(units=60, spectral_radius=0.7, input_scale=0.3, bias_scale=0.2, connections=6)
    )
    (weights,), (entering,), (bias,) = reservoir.weights, reservoir.input_weights, reservoir.biases
    assert float(torch.linalg.eigvals(weights).abs().max()) == pytest.approx(0.7)
    assert bool(((weights != 0).sum(1) == 6).all())
    assert 0.25 < float(entering.abs().max()) <= 0.3 and 0.15 < float(bias.abs().max()) <= 0.2


def test_the_linear_reservoir_is_its_recurrence() -> None:
    reservoir = LinearReservoir(2, 6, 0.8, seed=1)
    u = torch.randn(3, 20, 2, dtype=torch.float64)
    z = torch.zeros(3, 3, dtype=torch.complex128)
    for step in range(20):
        z = reservoir.eigenvalues * z + u[:, step].to(z) @ reservoir.input_weights.T
    torch.testing.assert_close(reservoir.states(u)[:, -1], torch.cat([z.real, z.imag], 1))


@pytest.mark.parametrize("units", [10, 30])
def test_memory_is_at_most_the_units(units: int) -> None:
    u = torch.rand(4000, generator=torch.Generator().manual_seed(units), dtype=torch.float64) - 0.5
    linear = memory_profile(LinearReservoir(1, units, 0.9).states(u[None, :, None])[0], u, 90)
    assert 0.8 * units < float(linear.sum()) <= units
    config = ReservoirConfig(units=units, input_scale=0.1)
    tanh = memory_profile(Reservoir(config).states(u[None, :, None])[0], u, 90)
    assert 0.3 * units < float(tanh.sum()) <= units
    assert float(tanh[0]) > 0.99 and float(tanh[-10:].max()) < 0.2


def test_narma10_is_below_the_bounds() -> None:
    """50 units, 1000 points: Vinckier et al. 2015 have 0.107, a linear shift register 0.16."""
    u, y = narma10(2200)
    u, y = u[None, :, None] - 0.25, y[None, :, None]
    config = ReservoirConfig(units=50, spectral_radius=0.8, input_scale=0.1)
    penalties = [10.0**-power for power in range(5, 13)]
    network = EchoStateNetwork(Reservoir(config), penalties, washout=200, squares=True).fit(u[:, :1200], y[:, :1200])
    error = (network.predict(u) - y)[:, 1200:].square().mean() / y[:, 1200:].var()
    assert float(error) < 0.107


def test_a_free_run_goes_on_as_the_signal_does() -> None:
    signal = torch.tanh(mackey_glass(2600) - 1)[None, :, None]
    config = ReservoirConfig(units=150, spectral_radius=1.0, bias_scale=0.2, leak=0.6, connections=15)
    network = EchoStateNetwork(Reservoir(config), (1e-14,)).fit(signal[:, :2100], signal[:, 1:2101])
    assert network.score(signal[:, :2100], signal[:, 1:2101]) > 0.99999
    found = network.free_run(signal[:, 2100:2300], 84)
    assert float((found - signal[:, 2300:2384]).abs().max()) < 0.1 * float(signal.std())


def test_lorenz_stays_on_its_attractor() -> None:
    path = lorenz(500)
    assert path.abs().amax(0)[2] < 50 and float(path[:, 0].std()) == pytest.approx(7.9, abs=1.5)


def test_recursive_least_squares_is_the_ridge_solution() -> None:
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randn(60, 2, dtype=torch.float64)
    online = RecursiveLeastSquares(5, 2, penalty=0.1)
    first = online.partial_fit(x[:40], y[:40])
    online.partial_fit(x[40:], y[40:])
    assert not first[0].any()
    expected = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(5, dtype=torch.float64), x.T @ y)
    torch.testing.assert_close(online.weights, expected)


def test_the_readout_is_the_ridge_solution_and_chooses_its_penalty() -> None:
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randn(60, 1, dtype=torch.float64)
    centred = x - x.mean(0)
    expected = torch.linalg.solve(centred.T @ centred + 6 * torch.eye(5, dtype=torch.float64), centred.T @ y)
    torch.testing.assert_close(TunedRidge((0.1,)).fit(x, y).weights, expected)
    assert TunedRidge((1e-9, 1e9)).fit(x, x[:, :1]).penalty == 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReservoirConfig(leak=0), "leak is 0"),
        (lambda: ReservoirConfig(units=0), "units is 0"),
        (lambda: ReservoirConfig(spectral_radius=math.nan), "spectral_radius is nan"),
        (lambda: Reservoir(ReservoirConfig()).states(torch.full((1, 3, 1), math.nan)), "NaN"),
        (lambda: Reservoir(ReservoirConfig()).states(torch.zeros(3, 1)), "shape"),
        (lambda: LinearReservoir(1, 10, 1.5).states(torch.ones(1, 500, 1)), r"diverges with spectral radius 1\.5"),
        (lambda: EchoStateNetwork(Reservoir(ReservoirConfig())).fit(*2 * (torch.zeros(1, 50, 1),)), "washout of 100"),
        (lambda: TunedRidge(()), "penalties"),
        (lambda: RecursiveLeastSquares(3, forgetting=0), "forgetting"),
    ],
    ids=["leak", "units", "radius", "nan", "shape", "diverges", "short", "penalties", "forgetting"],
)
def test_bad_input_is_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_free_run_that_diverges_says_so_with_the_radius() -> None:
    network = EchoStateNetwork(Reservoir(ReservoirConfig(units=10, spectral_radius=0.5)), (1e-9,), washout=5)
    growing = (1.5 ** torch.arange(30, dtype=torch.float64))[None, :, None]
    network.fit(growing[:, :-1], growing[:, 1:])
    with pytest.raises(InputError, match=r"diverges with spectral radius 0\.5"):
        network.free_run(growing, 100)
