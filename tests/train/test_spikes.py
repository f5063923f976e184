"""Spikes: found in traces that have them, hardly ever in traces that have none."""

import json
import math
import random

import pytest

from verim.errors import InputError
from verim.train.spikes import SpikeConfig, SpikeDetector

STEPS = 4000


def trace(seed: int, tails: str = "normal") -> list[tuple[float, float]]:
    """Losses that fall as a power of the step with noise, norms spread by factors; `tails` of the noise."""
    draw = random.Random(seed)

    def noise() -> float:
        if tails == "normal":
            return draw.gauss(0, 1)
        return draw.gauss(0, 1) / math.sqrt(draw.gammavariate(2.5, 1 / 2.5))  # Student's t, 5 degrees of freedom

    return [
        (2 + 6 * (step + 10) ** -0.3 + 0.05 * noise(), 0.5 * (step + 10) ** -0.1 * math.exp(0.15 * noise()))
        for step in range(STEPS)
    ]


def decisions(points: list[tuple[float, float]], config: SpikeConfig = SpikeConfig()) -> list[str]:  # noqa: B008
    detector = SpikeDetector(config)
    return [detector.decide(*point) for point in points]


@pytest.mark.parametrize(("tails", "most"), [("normal", 0), ("heavy", 36)])
def test_false_alarms_are_rare(tails: str, most: int) -> None:
    """None in 12 000 steps of normal noise; with heavy tails, where 6 deviations do occur, fewer than 3 in 1000."""
    found = [decision for seed in range(3) for decision in decisions(trace(seed, tails))]
    assert sum(decision != "go on" for decision in found) <= most
    assert "roll back" not in found


@pytest.mark.parametrize("seed", range(3))
def test_spikes_are_skipped_one_by_one(seed: int) -> None:
    points, spikes = trace(seed), {200, 1000, 1001, 2500, 3999}
    for step in spikes:
        loss, norm = points[step]
        points[step] = (loss + 1.0, norm) if step % 2 else (loss, norm * 10)
    found = decisions(points, SpikeConfig(patience=3))
    assert "roll back" not in found  # five, but never three in a row
    assert {step for step, decision in enumerate(found) if decision == "skip"} == spikes


def test_a_loss_that_stays_high_is_rolled_back_after_the_patience() -> None:
    points = trace(0)
    for step in range(1000, 1020):
        points[step] = points[step][0] + 2, points[step][1]
    found = decisions(points, SpikeConfig(patience=5))
    assert found[999:1006] == ["go on", "skip", "skip", "skip", "skip", "roll back", "skip"]


def test_what_is_lower_than_usual_is_no_spike() -> None:
    points = trace(0)
    points[1000] = 0.1, 1e-6
    points[1001] = points[1001][0], 0.0
    assert set(decisions(points)) == {"go on"}


@pytest.mark.parametrize(
    "point", [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf), (-math.inf, 1.0)]
)
def test_what_is_not_finite_is_a_spike_from_the_first_step(point: tuple[float, float]) -> None:
    detector = SpikeDetector(SpikeConfig(patience=3))
    assert [detector.decide(*point) for _ in range(4)] == ["skip", "skip", "roll back", "skip"]
    assert detector.decide(2.0, 1.0) == "go on"
    assert detector.state()["losses"][-1] == 2.0 and all(map(math.isfinite, detector.state()["log_norms"]))


def test_a_new_level_is_taken_for_usual_after_half_a_window() -> None:
    points = trace(0)[:1000] + [(loss + 1, norm) for loss, norm in trace(1)[1000:]]
    found = decisions(points, SpikeConfig(window=64, patience=1000))
    assert found[1000] == "skip" and set(found[1064:]) == {"go on"}


def test_a_flat_curve_has_no_spikes() -> None:
    points = [(1.0 + 1e-4 * (step % 7 == 0), 1.0) for step in range(500)]
    assert set(decisions(points)) == {"go on"}
    assert "skip" in decisions([*points, (1.2, 1.0)])


def test_restored_decides_as_never_stopped() -> None:
    points = trace(3, "heavy")
    whole, first, second = (SpikeDetector(SpikeConfig(threshold=3)) for _ in range(3))
    expected = [whole.decide(*point) for point in points]
    got = [first.decide(*point) for point in points[:777]]
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert got + [second.decide(*point) for point in points[777:]] == expected
    assert "skip" in expected[777:]


@pytest.mark.parametrize(
    ("field", "value"),
    [("threshold", 0.0), ("threshold", math.inf), ("window", 7), ("patience", 0), ("least", -1.0), ("least", math.nan)],
)
def test_impossible_fields_are_named(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field}: got {value}"):
        SpikeConfig(**{field: value})
