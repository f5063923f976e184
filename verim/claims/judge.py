"""The verdict, derived from what was measured and what was expected; no claim judges itself."""

from collections.abc import Sequence
from enum import StrEnum

from verim.claims.claim import Measurement
from verim.claims.expected import Expected


class Verdict(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    UNDER_CONDITIONS = "holds under conditions"
    NOT_HERE = "does not hold here"
    NEEDS_GPU = "needs a GPU"
    FAILED = "failed"


def judge(expected: Expected, measurements: Sequence[Measurement]) -> Verdict:
    """*Holds* under all conditions that were measured, under some, or under none."""
    held = [expected.holds(measurement.value) for measurement in measurements]
    if all(held):
        return Verdict.HOLDS
    return Verdict.UNDER_CONDITIONS if any(held) else Verdict.NOT_HERE


def decided(expected: Expected, measurement: Measurement) -> bool:
    """Whether the whole interval is judged like the value itself; without an interval it is."""
    if measurement.interval is None:
        return True
    (low, high), (least, greatest) = expected.bounds, measurement.interval
    inside, outside = low <= least and greatest <= high, greatest < low or least > high
    return inside if expected.holds(measurement.value) else outside
