"""Plans from a known law on made-up speeds."""

from dataclasses import replace

import numpy as np
import pytest
from test_ladder import SIZES_OF

from verim.scaling.fit import FittedLaw, Prediction, fit_law
from verim.scaling.ladder import LEAST_STRETCH, expected_seconds
from verim.scaling.laws import Law
from verim.scaling.plan import EVALUATIONS, best_plan, plan_for_time, tokens_within

LAW = Law(E=1.0, A=20.0, B=300.0, alpha=0.35, beta=0.35)
SIZES = SIZES_OF["transformer"]


def fitted(law: Law = LAW) -> FittedLaw:
    N, C = (values.ravel() for values in np.meshgrid(np.geomspace(5e3, 2e5, 6), [1e11, 3e11, 1e12]))
    D = C / 6 / N
    return fit_law(N, D, law.loss(N, D))


def test_tokens_within_takes_the_time_that_was_given() -> None:
    for size in SIZES[:6]:
        assert expected_seconds(size, tokens_within(size, 100.0), EVALUATIONS) == pytest.approx(100.0, rel=0.02)


def test_plan_is_the_best_size_for_the_time() -> None:
    plan = plan_for_time(fitted(), SIZES, 120.0, largest_budget=1e11)
    assert plan.seconds == pytest.approx(120.0, rel=0.02)
    for size in SIZES:
        assert LAW.loss(size.non_embedding, tokens_within(size, 120.0)) >= plan.predicted.loss * (1 - 1e-6)
    assert plan.predicted.low <= plan.predicted.loss <= plan.predicted.high


def test_plan_goes_three_times_beyond_the_ladder_even_where_that_takes_longer() -> None:
    plan = plan_for_time(fitted(), SIZES, 10.0, largest_budget=1e12)
    assert plan.flops >= LEAST_STRETCH * 1e12 * (1 - 1e-9)


def test_best_plan_is_the_one_that_is_surely_good() -> None:
    good = plan_for_time(fitted(), SIZES, 120.0, 1e11)
    hopeful = replace(good, predicted=Prediction(good.predicted.loss - 0.1, 1.0, good.predicted.high + 0.3))
    assert best_plan({"a": hopeful, "b": good}) is good
    worse = plan_for_time(fitted(Law(E=1.2, A=20.0, B=300.0, alpha=0.35, beta=0.35)), SIZES, 120.0, 1e11)
    assert best_plan({"a": worse, "b": good}) is good
