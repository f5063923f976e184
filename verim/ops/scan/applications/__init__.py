"""What scans are for: sorting, compaction, polynomials, automata, recurrences; each built on `associative_scan`.

Blelloch, Prefix Sums and Their Applications, CMU-CS-90-190, 1990, has them all. They show how a problem that looks
sequential becomes a scan once its steps are written as things that combine: counts, affine maps, tables.
"""

from verim.ops.scan.applications.automata import run_automaton
from verim.ops.scan.applications.lexing import Token, tokenize
from verim.ops.scan.applications.recurrences import affine_recurrence, evaluate_polynomial
from verim.ops.scan.applications.sorting import compact, radix_sort

__all__ = [
    "Token",
    "affine_recurrence",
    "compact",
    "evaluate_polynomial",
    "radix_sort",
    "run_automaton",
    "tokenize",
]
