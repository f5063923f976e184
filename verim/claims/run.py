"""Measures claims and judges them, within a budget of time; what is done is kept, whatever comes after."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import torch

from verim import __version__
from verim.anatomy import machine_card
from verim.claims.claim import Claim, Measurement
from verim.claims.judge import Verdict, judge
from verim.claims.results import Result, measurement_json, save, saved
from verim.errors import InputError

LONG_SECONDS = 60.0
"""What costs more is read from saved results, where there are some."""
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def budget_seconds(text: str) -> float:
    """Seconds of a time such as 90s, 10m or 1.5h.

    >>> budget_seconds("10m")
    600.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", text.strip())
    if found is None or not float(found[1]):
        raise InputError(f"--budget {text!r}: expected a time above 0 such as 90s, 10m or 1.5h")
    return float(found[1]) * _UNITS[found[2]]


def measured(claim: Claim) -> Result:
    """Measures and judges one claim, from the same random numbers each time.

    An exception makes it a failed one, with its reason; an interrupt of the keyboard passes through.
    """
    began, error = time.perf_counter(), None
    found: tuple[Measurement, ...] = ()
    if claim.gpu and not torch.cuda.is_available():
        verdict = Verdict.NEEDS_GPU
    else:
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                found = claim.measure()
            verdict = judge(claim.expected, found)
        except Exception as reason:  # whatever it is, the other claims are measured all the same
            verdict, error = Verdict.FAILED, f"{type(reason).__name__}: {reason}"
    return Result(
        claim=claim.as_json(),
        verdict=verdict.value,
        measurements=[measurement_json(claim, each) for each in found],
        error=error,
        seconds=time.perf_counter() - began,
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=machine_card(),
        verim=__version__,
        code=claim.code,
    )


def run(
    claims: Sequence[Claim],
    folder: Path,
    budget: float | None = None,
    saved_above: float = LONG_SECONDS,
    watch: Callable[[Claim], None] = lambda claim: None,
) -> Iterator[Result]:
    """The result of each claim as soon as it is there, saved in `folder`; cheapest first where there is a `budget`.

    What costs more than `saved_above` seconds comes from `folder`, if its code has not changed since. What does not fit
    into the budget (seconds) is left out: those claims have no result. `watch` is told of each claim that is about to
    be measured.
    """
    began = time.perf_counter()
    for claim in sorted(claims, key=lambda claim: claim.cost) if budget is not None else claims:
        result = saved(claim, folder) if claim.cost > saved_above else None
        if result is None:
            if budget is not None and time.perf_counter() - began + claim.cost > budget:
                continue
            watch(claim)
            result = measured(claim)
            save(result, folder)
        yield result
