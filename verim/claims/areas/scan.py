"""Scan: work and depth of the classical algorithms, memory banks, and what they are good for."""

import math

from verim.claims.claim import Measurement, claim
from verim.claims.expected import Goldens
from verim.ops.scan import algorithms

_LENGTH = 1024


def _add(left: int, right: int) -> int:
    return left + right


@claim(
    id="scan-depth",
    area="scan",
    text="With a thread a place, n places take log₂ n steps (Hillis and Steele) or 2 log₂ n (Blelloch)",
    source="Hillis and Steele 1986, p. 1172; Blelloch 1990, section 1.2",
    expected=Goldens({"Hillis-Steele": 1.0, "Blelloch": 2.0}),
    cost=0.1,
    kind="measured",
)
def depth() -> Measurement:
    values = range(_LENGTH)
    steps = {
        "Hillis-Steele": algorithms.hillis_steele(_add, values).depth,
        "Blelloch": algorithms.blelloch(_add, values, 0).depth,
    }
    per_level = {name: count / math.log2(_LENGTH) for name, count in steps.items()}
    return Measurement(per_level, f"dependent steps over log₂ n, counted while scanning {_LENGTH} numbers")
