"""Knees of curves made up, where they are known exactly."""

import math

import numpy as np
import pytest

from verim.anatomy.knee import largest_that_fits, place_of, saturation_knee, threads_knee
from verim.errors import InputError

WORK = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9], ids=["units", "nano", "giga"])
@pytest.mark.parametrize(("fixed", "each"), [(3.0, 1.0), (0.5, 0.25), (1e-3, 1e-4)], ids=["3-1", "half", "small"])
def test_the_knee_is_where_the_rate_reaches_four_fifths(fixed: float, each: float, unit: float) -> None:
    work = [unit * n for n in WORK]
    knee = saturation_knee(work, [fixed + each * n for n in WORK])
    assert knee.at == pytest.approx(4 * fixed / each * unit, rel=1e-4)  # n/(a + bn) = 0.8/b
    assert knee.at / (knee.fixed_seconds + knee.seconds_each * knee.at) == pytest.approx(0.8 / knee.seconds_each)
    assert knee.half == pytest.approx(fixed / each * unit, rel=1e-4)
    assert knee.side == "inside" and knee.error < 1e-4


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_another_share_has_another_knee(share: float) -> None:
    knee = saturation_knee(WORK, [1 + n for n in WORK], share)
    assert knee.at == pytest.approx(share / (1 - share), rel=1e-4)


def test_noise_and_a_point_that_is_far_off_move_it_little() -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, len(WORK))
    seconds = [(2.0 + 0.5 * n) * (1 + e) for n, e in zip(WORK, noise, strict=True)]
    assert saturation_knee(WORK, seconds).at == pytest.approx(16, rel=0.15)
    seconds[3] *= 3  # another process ran
    assert saturation_knee(WORK, seconds).at == pytest.approx(16, rel=0.25)


def test_a_curve_that_grows_with_the_work_has_its_knee_before_the_first_point() -> None:
    knee = saturation_knee(WORK, [0.1 * n for n in WORK])
    assert knee.side == "before" and knee.at < 1e-3


def test_a_flat_curve_has_none() -> None:
    knee = saturation_knee(WORK, [2.0 for _ in WORK])
    assert knee.side == "beyond" and knee.at > 1e3 * WORK[-1]


def test_the_knee_of_threads_is_where_half_of_each_is_lost() -> None:
    knee = threads_knee([1, 2, 4, 8], [1 + 3 / p for p in (1, 2, 4, 8)])
    assert knee.at == pytest.approx(5, rel=1e-4)  # t(1)/(p·t(p)) = 4/(p + 3) = 1/2
    assert threads_knee([1, 2], [2.0, 1.0]).side == "beyond"
    assert threads_knee([1, 2, 4], [2.0, 2.0, 2.0]).at == pytest.approx(2, rel=1e-3)  # threads that do nothing


@pytest.mark.parametrize(
    ("work", "seconds", "message"),
    [
        ([1, 2], [1, 2], "expected 3 or more"),
        ([1, 2, 3], [1, 2], "3 values and 2 times"),
        ([1, 3, 2], [1, 2, 3], "ascending"),
        ([1, 2, 3], [1, 0, 3], "not positive"),
        ([1, 2, 3], [1, math.nan, 3], "not positive"),
    ],
    ids=["few", "unequal", "order", "zero", "nan"],
)
def test_what_has_no_knee_is_refused(work: list[float], seconds: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        saturation_knee(work, seconds)


def test_a_place_on_the_axis_is_found_between_and_beyond() -> None:
    assert place_of([1, 2, 4], [1.0, 4.0, 16.0], 9.0) == pytest.approx(3)
    assert place_of([1, 2, 4], [1.0, 4.0, 16.0], 64.0) == pytest.approx(8)
    assert place_of([1, 2, 4], [1.0, 4.0, 16.0], math.inf) == math.inf


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("limit", [99.0, 1e3, 12345.0, 1e6])
def test_the_largest_that_fits_fits_and_little_more_would(power: int, limit: float) -> None:
    asked: list[int] = []

    def needed(n: int) -> float:
        asked.append(n)
        return 10.0 + 3.0 * n**power

    found = largest_that_fits(needed, [(1, needed(1)), (2, needed(2))], limit)
    assert needed(found) <= limit and (needed(found) >= 0.97 * limit or needed(found + 1) > limit)
    assert len(asked) <= 12


def test_nothing_fits_or_all_does() -> None:
    known = [(2, 20.0), (4, 40.0)]
    assert largest_that_fits(lambda n: 10.0 * n, known, 5.0) == 0
    assert largest_that_fits(lambda n: 10.0 * n, known, 1e9, unit=2, most=64) == 64
    assert largest_that_fits(lambda n: 10.0 * n, known, 70.0, unit=2) == 6
