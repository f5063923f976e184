"""Executable claims: what the literature says, what this machine says. `verim claims`, or here:

>>> from verim.claims import measured, select
>>> [result.verdict for result in map(measured, select(["scan-depth"]))]
['holds']
"""

from verim.claims.claim import AREAS, Claim, Measurement, claim
from verim.claims.expected import AtLeast, AtMost, Between, Exactly, Expected, Goldens
from verim.claims.found import QUICK_SECONDS, claims, select
from verim.claims.judge import Verdict, judge
from verim.claims.results import Result
from verim.claims.run import LONG_SECONDS, budget_seconds, measured, run

__all__ = [
    "AREAS",
    "LONG_SECONDS",
    "QUICK_SECONDS",
    "AtLeast",
    "AtMost",
    "Between",
    "Claim",
    "Exactly",
    "Expected",
    "Goldens",
    "Measurement",
    "Result",
    "Verdict",
    "budget_seconds",
    "claim",
    "claims",
    "judge",
    "measured",
    "run",
    "select",
]
