"""Which runs are a rung, and each rung against the law of the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from verim.errors import InputError
from verim.scaling.fit import leave_budget_out
from verim.scaling.held_out import leave_each_budget_out, nominal_budgets
from verim.scaling.laws import Law

TRUTH = Law(E=1.0, A=60.0, B=40.0, alpha=0.42, beta=0.27)


def ladder(scatter: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    C = np.repeat([1e11, 3e11, 1e12, 3e12], 6) * np.exp(scatter * np.random.default_rng(0).uniform(-1, 1, 24))
    N = np.array([TRUTH.optimum(c).N for c in C]) * np.tile(np.geomspace(0.3, 3, 6), 4)
    return N, C / 6 / N, TRUTH.loss(N, C / 6 / N), C


@given(st.floats(0, 0.04), st.permutations(range(24)))
def test_rungs_are_found_whatever_the_order(scatter: float, order: list[int]) -> None:
    *_, C = ladder(scatter)
    rungs = nominal_budgets(C[order])
    assert len(np.unique(rungs)) == 4
    assert_allclose(rungs, np.repeat([1e11, 3e11, 1e12, 3e12], 6)[order], rtol=0.05)


def test_runs_that_are_no_ladder_are_cut_into_quarters() -> None:
    C = np.geomspace(1e10, 1e13, 40)
    rungs, counts = np.unique(nominal_budgets(C), return_counts=True)
    assert len(rungs) == 4 and set(counts) == {10}
    assert nominal_budgets([1e12]) == pytest.approx([1e12])


def test_one_law_holds_for_every_budget_left_out() -> None:
    N, D, L, C = ladder()
    errors = leave_each_budget_out(N, D, L, C)
    assert [error.budget for error in errors] == pytest.approx([1e11, 3e11, 1e12, 3e12])
    assert all(abs(error.worst) < 1e-6 and len(error.errors) == 6 for error in errors)


def test_the_last_is_the_test_of_extrapolation_and_a_bend_shows() -> None:
    N, D, L, C = ladder()
    L[C == 3e12] *= 1.03  # a law that bends beyond the others
    errors = leave_each_budget_out(N, D, L, C)
    assert_allclose(errors[-1].mean, 1 / 1.03 - 1, rtol=1e-4)
    assert errors[-1].errors == pytest.approx(leave_budget_out(N, D, L, C).errors)
    assert abs(errors[1].mean) < abs(errors[-1].mean)


def test_bad_input_is_named() -> None:
    N, D, L, C = ladder()
    with pytest.raises(InputError, match="budgets has 2 entries for 24 runs"):
        leave_each_budget_out(N, D, L, C[:2])
    with pytest.raises(InputError, match="too few runs remain"):
        leave_each_budget_out(N, D, L, np.full(24, 1e12))
