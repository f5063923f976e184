"""Minima of IsoFLOP curves: exact on parabolas, close on real surfaces, honest at the ladder's edge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from verim.errors import InputError
from verim.scaling.isoflop import minimum, parabola_bias, power_law
from verim.scaling.laws import Law

TRUTH = Law(E=1.0, A=60.0, B=40.0, alpha=0.5, beta=0.27)
BUDGET = 1e12


def curve(sizes: int = 6, step: float = 1.6, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Sizes around the optimum of TRUTH at one budget, and their losses."""
    N = TRUTH.optimum(BUDGET).N * shift * step ** (np.arange(sizes) - (sizes - 1) / 2)
    return N, TRUTH.loss(N, BUDGET / 6 / N)


@given(
    st.floats(1e3, 1e9),
    st.floats(0.5, 5.0),
    st.floats(0.005, 0.05),
    st.integers(3, 8),
    st.floats(-0.3, 0.3),
    st.permutations(range(8)),
)
def test_a_parabola_in_log_size_is_exact(
    centre: float, loss: float, curvature: float, sizes: int, shift: float, order: list[int]
) -> None:
    x = 0.5 * (np.arange(sizes) - (sizes - 1) / 2)
    x = x[[i for i in order if i < sizes]]
    found = minimum(centre * np.exp(x + shift * 0.5), loss * np.exp(curvature * (x + shift * 0.5) ** 2))
    assert found.interior and found.warning is None and found.bad == ()
    assert_allclose((found.N, found.loss), (centre, loss), rtol=1e-5)
    assert_allclose(found.coefficients[2], curvature, rtol=1e-4)
    assert_allclose(found.curve(np.array([centre * 2])), loss * np.exp(curvature * np.log(2) ** 2), rtol=1e-6)


def test_the_vertex_of_a_surface_is_near_its_optimum() -> None:
    found = minimum(*curve())
    optimum = TRUTH.optimum(BUDGET)
    assert_allclose(found.N, optimum.N, rtol=0.05)  # the bias that the docstring states
    assert_allclose(found.loss, optimum.L, rtol=1e-3)


def test_noise_leaves_the_minimum_within_its_errors() -> None:
    generator, optimum, sigma = np.random.default_rng(0), TRUTH.optimum(BUDGET), 0.005
    inside, scores = 0, []
    for _ in range(300):
        N, L = curve()
        found = minimum(N, L * np.exp(sigma * generator.standard_normal(6)), sigma)
        assert found.N_interval is not None and found.loss_error is not None
        inside += found.N_interval[0] < optimum.N < found.N_interval[1]
        scores.append((found.loss - optimum.L) / found.loss_error)
    assert 0.75 < inside / 300 < 0.97  # 90 % nominal; the bias of the parabola takes some of it
    assert 0.85 < np.std(scores) < 1.15


@pytest.mark.parametrize(("shift", "edge"), [(6.0, "smallest"), (1 / 6, "largest")])
def test_a_minimum_on_the_edge_is_said_to_be_there(shift: float, edge: str) -> None:
    N, L = curve(shift=shift)
    found = minimum(N, L)
    assert not found.interior
    assert found.warning is not None and edge in found.warning and "add" in found.warning
    assert_allclose(found.N, N.min() if edge == "smallest" else N.max(), rtol=1e-12)
    assert found.N_interval is None


def test_a_curve_without_curvature_has_no_minimum() -> None:
    found = minimum([1e4, 2e4, 4e4, 8e4], [2.0, 1.99, 2.1, 2.05])
    assert not found.interior
    assert found.warning is not None and "curve upwards" in found.warning


def test_a_vertex_beyond_the_sizes_is_no_minimum() -> None:
    found = minimum(1e4 * np.exp([0.0, 0.1, 2.0, 3.0]), [2.002, 2.0, 2.3, 2.6])
    assert not found.interior
    assert found.warning is not None and "outside the sizes" in found.warning


@pytest.mark.parametrize("bad", range(6))
def test_one_bad_run_is_set_aside(bad: int) -> None:
    N, L = curve(step=1.4)
    L[bad] *= 1.08
    found = minimum(N, L, sigma=0.004)
    assert found.bad == (bad,)
    assert bad not in found.used
    clean = minimum(np.delete(N, bad), np.delete(L, bad), sigma=0.004)
    assert_allclose(found.N, clean.N)


def test_wide_ladders_are_fitted_near_their_minimum() -> None:
    N, L = curve(sizes=9, step=2.5)
    found = minimum(N, L)
    assert len(found.used) == 5
    assert_allclose(found.N, TRUTH.optimum(BUDGET).N, rtol=0.12)


@given(st.floats(0.1, 1.0), st.floats(1e-3, 1e3), st.integers(3, 6))
def test_power_laws_are_recovered(exponent: float, coefficient: float, budgets: int) -> None:
    C = 1e11 * 3.0 ** np.arange(budgets)
    law = power_law(C, coefficient * C**exponent)
    assert_allclose((law.exponent, law.coefficient), (exponent, coefficient), rtol=1e-6)
    assert law.interval is not None and law.interval[0] - 1e-9 <= exponent <= law.interval[1] + 1e-9
    assert_allclose(law.value(1e15), coefficient * 1e15**exponent, rtol=1e-5)


def test_the_interval_of_an_exponent_covers_at_its_rate() -> None:
    generator, C = np.random.default_rng(0), np.array([3e11, 1e12, 3e12])
    laws = [power_law(C, C**0.5 * np.exp(0.1 * generator.standard_normal(3))) for _ in range(500)]
    inside = sum(law.interval[0] < 0.5 < law.interval[1] for law in laws if law.interval)
    assert 0.86 < inside / 500 < 0.94


def test_two_budgets_have_no_interval() -> None:
    assert power_law([1e11, 1e12], [10.0, 20.0]).interval is None


@pytest.mark.parametrize(
    ("N", "L", "sigma", "word"),
    [
        ([1e4, 2e4], [2.0, 1.9], None, "N has 2"),
        ([1e4, 1e4, 2e4], [2.0, 1.9, 2.0], None, "N has 2"),
        ([1e4, 2e4, 3e4], [2.0, 1.9], None, "N has 3 entries and L 2"),
        ([1e4, 2e4, -3e4], [2.0, 1.9, 2.0], None, r"N\[2\]"),
        ([1e4, 2e4, 3e4], [2.0, float("nan"), 2.0], None, r"L\[1\]"),
        ([1e4, 2e4, 3e4], [2.0, 1.9, 2.0], 0.0, "sigma"),
        ([[1e4, 2e4, 3e4]], [2.0, 1.9, 2.0], None, "dimensions"),
    ],
)
def test_bad_input_of_minimum_is_named(N: list, L: list, sigma: float | None, word: str) -> None:
    with pytest.raises(InputError, match=word):
        minimum(N, L, sigma)


@pytest.mark.parametrize(
    ("C", "values", "word"),
    [
        ([1e11], [1.0], "C has 1"),
        ([1e11, 1e12], [1.0], "C has 2 entries"),
        ([1e11, 0.0], [1.0, 2.0], r"C\[1\]"),
        ([1e11, 1e12], [1.0, float("inf")], r"values\[1\]"),
    ],
)
def test_bad_input_of_power_law_is_named(C: list, values: list, word: str) -> None:
    with pytest.raises(InputError, match=word):
        power_law(C, values)


def rungs(law: Law, shift: float = 1.0, drift: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    C = np.repeat([1e19, 1e20, 1e21], 7)
    N = np.array([law.optimum(c).N for c in C]) * shift * np.tile(np.geomspace(1 / 3, 3, 7), 3)
    N *= np.repeat([1.0, drift, drift**2], 7)
    return N, C / 6 / N, C


def test_a_surface_with_equal_exponents_has_no_bias() -> None:
    law = Law(E=1.7, A=400.0, B=900.0, alpha=0.3, beta=0.3)
    for bias in parabola_bias(law, *rungs(law)):
        assert abs(bias.N) < 1e-6 and abs(bias.D) < 1e-6


def test_unequal_exponents_bias_the_vertex_and_drifting_centres_the_exponent() -> None:
    law = Law(E=1.7, A=400.0, B=900.0, alpha=0.5, beta=0.2)
    centred = parabola_bias(law, *rungs(law))
    assert [bias.C for bias in centred] == [1e19, 1e20, 1e21]
    for bias in centred:
        assert 0.005 < abs(bias.N) < 0.25
        assert_allclose((1 + bias.N) * (1 + bias.D), 1.0)
    # the same bias at every budget leaves the exponent alone; sizes that drift off centre do not
    assert_allclose([bias.N for bias in centred], centred[0].N, rtol=0.01)
    drifting = parabola_bias(law, *rungs(law, shift=0.5, drift=1.4))
    assert drifting[-1].N - drifting[0].N > 0.03


def test_bias_is_told_only_where_there_is_a_minimum() -> None:
    assert parabola_bias(TRUTH, *rungs(TRUTH, shift=20.0)) == ()
    N, D, C = rungs(TRUTH)
    assert parabola_bias(TRUTH, N[:2], D[:2], C[:2]) == ()
    with pytest.raises(InputError, match="N, D and budgets have 21, 21 and 3 entries"):
        parabola_bias(TRUTH, N, D, C[:3])
