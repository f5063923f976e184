"""Approach 1 on curves of a known surface, and its refusals."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from verim.errors import InputError
from verim.scaling.envelope import envelope
from verim.scaling.laws import Law

TRUTH = Law(E=1.7, A=406.0, B=411.0, alpha=0.34, beta=0.28)


def curves(sizes: int = 24, points: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes over two decades and a half, each with the losses of complete runs of 1 to 200 tokens a parameter."""
    N = np.repeat(np.geomspace(3e7, 1e10, sizes), points)
    D = N * np.tile(np.geomspace(1, 200, points), sizes)
    return N, D, TRUTH.loss(N, D)


def test_many_sizes_recover_the_exponents_and_the_optimum() -> None:
    found = envelope(*curves())
    a, b = TRUTH.exponents
    assert_allclose((found.size.exponent, found.tokens.exponent), (a, b), atol=0.01)
    for C in (1e19, 1e20, 1e21):
        best = TRUTH.optimum(C)
        assert_allclose((found.size.value(C), found.tokens.value(C)), (best.N, best.D), rtol=0.05)
    for C, loss in zip(found.C, found.L, strict=True):  # an envelope touches the frontier from above
        assert TRUTH.optimum(C).L < loss < TRUTH.optimum(C).L * 1.002
    assert found.N_interval is not None and found.D_interval is not None
    assert found.N_interval[0] < a + 0.005 and found.N_interval[1] > a - 0.005
    assert_allclose(6 * found.N * found.D, found.C, rtol=1e-9)


def test_edges_do_not_count() -> None:
    N, D, L = curves(sizes=8)
    found = envelope(N, D, L)
    assert N.min() < found.N.min() and found.N.max() < N.max()


def test_the_order_of_the_points_does_not_matter() -> None:
    N, D, L = curves(sizes=8, points=10)
    order = np.random.default_rng(0).permutation(N.size)
    plain, shuffled = envelope(N, D, L), envelope(N[order], D[order], L[order])
    assert shuffled.size == plain.size and shuffled.N_interval == plain.N_interval


def test_flops_of_the_runs_own_count_are_used() -> None:
    N, D, L = curves(sizes=12)
    plain, doubled = envelope(N, D, L), envelope(N, D, L, 12 * N * D)
    assert_allclose(doubled.C, 2 * plain.C, rtol=1e-9)
    assert_allclose(doubled.N, plain.N)


def test_points_on_the_way_of_longer_schedules_bias_it() -> None:
    """The docstring's first caution: a run caught before its end stands too high, and the envelope moves."""
    N, D, _ = curves()
    share = D / (200 * N)
    biased = envelope(N, D, TRUTH.loss(N, D) * (1 + 0.01 * (1 - share)))  # one schedule a size: only its end is done
    assert_allclose(biased.tokens.value(1e20) / TRUTH.optimum(1e20).D, 1.22, atol=0.03)


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (slice(0, 2), "N has 1 sizes"),
        (slice(0, 60, 30), "N has 0 sizes"),
        (slice(0, 60), "N has 2 sizes"),
    ],
)
def test_too_few_curves_are_refused(rows: slice, word: str) -> None:
    N, D, L = curves()
    with pytest.raises(InputError, match=word):
        envelope(N[rows], D[rows], L[rows])


def test_bad_input_is_named() -> None:
    N, D, L = curves(sizes=4, points=5)
    with pytest.raises(InputError, match="hardly a budget"):
        envelope(N, D, np.full(L.size, 2.0) + N * 1e-12)  # the smallest is always the best
    with pytest.raises(InputError, match="20, 20, 19 and 20 entries"):
        envelope(N, D, L[:-1])
    with pytest.raises(InputError, match="budgets is 1"):
        envelope(N, D, L, budgets=1)
