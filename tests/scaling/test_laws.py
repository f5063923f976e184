"""Published optima come out of the published constants, and the closed form is the optimum of any law."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from verim.errors import InputError
from verim.scaling.frontiers import APPROACH_3, Projection
from verim.scaling.laws import Law
from verim.scaling.published import EPOCH, HOFFMANN, HOFFMANN_ROUNDED, KAPLAN, PUBLISHED_EXPONENTS, PUBLISHED_LAWS

laws = st.builds(
    Law,
    E=st.floats(0.0, 3.0),
    A=st.floats(1.0, 1e4),
    B=st.floats(1.0, 1e4),
    alpha=st.floats(0.1, 1.2),
    beta=st.floats(0.1, 1.2),
)


def test_hoffmanns_unrounded_constants_give_chinchillas_forty_billion() -> None:
    optimum = HOFFMANN.law.optimum(5.76e23)
    assert_allclose(optimum.N, 40.4e9, rtol=2e-3)
    assert_allclose(optimum.D, 2.38e12, rtol=2e-3)


def test_rounded_constants_miss_it_and_are_marked() -> None:
    optimum = HOFFMANN_ROUNDED.law.optimum(5.76e23)
    assert_allclose(optimum.N, 32.2e9, rtol=2e-3)
    assert_allclose(optimum.D, 2.98e12, rtol=2e-3)
    assert [law.name for law in PUBLISHED_LAWS if law.rounded] == [HOFFMANN_ROUNDED.name, KAPLAN.name]


# Hoffmann's Table A3, Approach 3, with its misprinted row of 175 B corrected (see `frontiers`). From row to row the
# table grows as N ∝ C^0.459, the unrounded constants as C^0.457, hence the tolerance over nine decades.
@pytest.mark.parametrize("row", APPROACH_3, ids=lambda row: f"{row.N:.3g}")
def test_hoffmanns_table_a3(row: Projection) -> None:
    optimum = HOFFMANN.law.optimum(row.C)
    assert_allclose(optimum.N, row.N, rtol=0.08)
    assert_allclose(optimum.D, row.D, rtol=0.12)


@pytest.mark.parametrize(
    ("C", "N", "D", "L"),
    [
        (1e18, 8.05e7, 2.07e9, 3.490),
        (1e19, 2.62e8, 6.36e9, 2.927),
        (1e20, 8.54e8, 1.95e10, 2.553),
        (1e21, 2.78e9, 6.00e10, 2.306),
        (5.76e23, 72.3e9, 1.33e12, 1.974),
    ],
)
def test_epochs_refit(C: float, N: float, D: float, L: float) -> None:
    optimum = EPOCH.law.optimum(C)
    assert_allclose(optimum.N, N, rtol=2e-3)
    assert_allclose(optimum.D, D, rtol=5e-3)
    assert_allclose(optimum.L, L, rtol=0, atol=6e-4)


def test_epochs_intervals_hold_its_values() -> None:
    for name, low, high in EPOCH.intervals:
        assert low < getattr(EPOCH.law, name) < high


def test_published_exponents_share_out_the_budget() -> None:
    for row in PUBLISHED_EXPONENTS:
        assert row.a + row.b == pytest.approx(1.0, abs=1e-9)
        assert row.source
    kaplan = PUBLISHED_EXPONENTS[0]
    assert (kaplan.a, kaplan.counts) == (0.73, "non_embedding")


@given(laws, st.floats(1e9, 1e26), st.floats(3.0, 12.0))
def test_optimum_spends_the_budget_and_is_stationary(law: Law, C: float, k: float) -> None:
    N, D, L = law.optimum(C, k)
    assert k * N * D == pytest.approx(C, rel=1e-9)
    assert_allclose(L, law.loss(N, D), rtol=1e-12)
    # dL/dlnN at constant C: the two marginal returns are equal (Hoffmann's first-order condition)
    assert law.alpha * law.A * N**-law.alpha == pytest.approx(law.beta * law.B * D**-law.beta, rel=1e-8)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.loss(N * factor, D / factor) >= L * (1 - 1e-12)


@given(laws, st.floats(1e9, 1e24))
def test_exponents_are_the_slopes_of_the_frontier(law: Law, C: float) -> None:
    small, large = law.optimum(C), law.optimum(10 * C)
    assert np.log10(large.N / small.N) == pytest.approx(law.exponents.a, abs=1e-6)
    assert np.log10(large.D / small.D) == pytest.approx(law.exponents.b, abs=1e-6)


def test_loss_broadcasts() -> None:
    law, sizes = EPOCH.law, np.array([1e6, 1e7])
    assert isinstance(law, Law)
    assert law.loss(sizes[:, None], sizes[None]).shape == (2, 2)
    assert law.loss(sizes, sizes)[1] == pytest.approx(law.loss(1e7, 1e7))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_numbers_name_the_argument(bad: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        Law(E=1, A=1, B=1, alpha=bad, beta=0.3)
    with pytest.raises(InputError, match="C is"):
        EPOCH.law.optimum(bad)
    with pytest.raises(InputError, match="flops_per_parameter_token"):
        EPOCH.law.optimum(1e20, bad)
    if bad != float("inf"):
        with pytest.raises(InputError, match="N is"):
            EPOCH.law.loss(bad, 1e9)


def test_a_law_without_one_term_has_no_optimum() -> None:
    with pytest.raises(InputError, match="A = 0"):
        Law(E=1, A=0, B=1, alpha=0.3, beta=0.3).optimum(1e20)
