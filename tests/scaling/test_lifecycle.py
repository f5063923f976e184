"""The life-cycle optimum: Chinchilla's where nobody uses the model, smaller the more it is used."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import brentq

from verim.errors import InputError
from verim.scaling.laws import Law
from verim.scaling.lifecycle import Costs, best_within, cheapest_for_loss
from verim.scaling.published import LAWS, published_law

SURFACES = st.sampled_from([LAWS["chinchilla"], LAWS["epoch"]])


@given(SURFACES, st.floats(18, 26))
@settings(max_examples=30, deadline=None)
def test_without_use_it_is_the_optimum_of_training(law: Law, log_budget: float) -> None:
    best = law.optimum(10**log_budget)
    for life in (cheapest_for_loss(law, best.L, 0.0), best_within(law, 10**log_budget, 0.0)):
        assert_allclose((life.N, life.D), (best.N, best.D), rtol=1e-4)
        assert_allclose((life.L, life.total_flops), (best.L, 10**log_budget), rtol=1e-9)


@given(SURFACES, st.floats(18, 24), st.floats(8, 14), st.floats(0.5, 8))
@settings(max_examples=30, deadline=None)
def test_no_neighbour_is_cheaper_and_the_sums_are_right(
    law: Law, log_budget: float, log_used: float, price: float
) -> None:
    loss, used, costs = law.optimum(10**log_budget).L, 10**log_used, Costs(price=price)
    life = cheapest_for_loss(law, loss, used, costs)
    assert_allclose(law.loss(life.N, life.D), loss, rtol=1e-9)
    assert_allclose(life.total_flops, 6 * life.N * life.D + 2 * price * life.N * used)
    for factor in (0.8, 0.99, 1.01, 1.25):
        N = life.N * factor
        if law.least_parameters(loss) < N:
            assert 6 * N * law.tokens_for(N, loss) + 2 * price * N * used > life.total_flops * (1 - 1e-9)
    # both questions have one answer: the same total FLOPs buy the same loss
    back = best_within(law, life.total_flops, used, costs)
    assert_allclose(back.L, loss, rtol=1e-7)
    assert_allclose(back.N, life.N, rtol=1e-3)


@pytest.mark.parametrize("name", ["chinchilla", "epoch", "kaplan"])
def test_the_more_a_model_is_used_the_smaller_it_is(name: str) -> None:
    law = published_law(name)
    loss = law.loss(7e9, 140e9)
    lives = [cheapest_for_loss(law, loss, used) for used in (0, 1e11, 1e12, 1e13, 1e14)]
    assert [life.N for life in lives] == sorted((life.N for life in lives), reverse=True)
    assert [life.tokens_per_parameter for life in lives] == sorted(life.tokens_per_parameter for life in lives)
    assert all(law.least_parameters(loss) < life.N for life in lives)


def test_sardanas_example() -> None:
    # arXiv 2401.00448, figure 1: who wants the quality of a 13 B Chinchilla model and expects 2e12 tokens of use
    # saves 1.7e22 FLOPs (17 %) with a 7 B model. Their constants of the law are rounded otherwise than ours.
    law, used = published_law("chinchilla"), 2e12
    C = brentq(lambda C: law.optimum(C).N - 13e9, 1e20, 1e25)
    life = cheapest_for_loss(law, law.optimum(C).L, used)
    whole = C + 2 * 13e9 * used
    assert_allclose(life.N, 7e9, rtol=0.03)
    assert_allclose(whole - life.total_flops, 1.7e22, rtol=0.06)
    assert_allclose(1 - life.total_flops / whole, 0.17, atol=0.01)


def test_what_cannot_be_asked() -> None:
    law = published_law("epoch")
    with pytest.raises(InputError, match=r"loss is 1\.7: this law reaches nothing at or below its floor E = 1\.8172"):
        cheapest_for_loss(law, 1.7, 1e12)
    with pytest.raises(InputError, match="any number of parameters"):
        cheapest_for_loss(Law(E=1, A=0, B=1, alpha=0.3, beta=0.3), 1.5, 1e12)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="inference_tokens is"):
            best_within(law, 1e20, bad)
        with pytest.raises(InputError, match="price"):
            Costs(price=bad)
        with pytest.raises(InputError, match="total_flops"):
            best_within(law, bad, 1e9)
