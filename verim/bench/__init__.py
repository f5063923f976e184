"""Our ops beside other software and beside what the machine can do: correctness first, then turns in one process."""

from verim.bench.measure import DisagreementError, check_ours, load_peers, measure
from verim.bench.record import COLUMNS, LEGEND, OpRecord, append, as_json, check_place, conditions, heading, rows, title
from verim.bench.subjects import SUBJECTS

__all__ = [
    "COLUMNS",
    "LEGEND",
    "SUBJECTS",
    "DisagreementError",
    "OpRecord",
    "append",
    "as_json",
    "check_ours",
    "check_place",
    "conditions",
    "heading",
    "load_peers",
    "measure",
    "rows",
    "title",
]
