"""Other people's runs: N, D and L from a table of theirs, CSV or JSON lines.

Columns are found by their names (any case, spaces and signs left away) or named by the caller. Numbers may be written
as 7e9, 7_000_000_000, 7,000,000,000 or 7B. A row that cannot be read is an error that names its line.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from verim.errors import InputError

# In each tuple the earlier name is preferred where a file has several.
RECOGNISED: dict[str, tuple[str, ...]] = {
    "parameters": (
        *("n", "nonembedding", "nonembeddingparameters", "nonembeddingparams"),
        *("parameters", "params", "nparams", "nparameters", "numparams", "numparameters", "parametercount"),
        *("modelsize", "totalparameters", "totalparams", "total", "size"),
    ),
    "tokens": (
        *("d", "tokens", "trainingtokens", "traintokens", "ntokens", "numtokens", "tokensseen", "tokenstrained"),
        *("datasetsize", "data"),
    ),
    "loss": (
        *("l", "bitsperbyte", "bpb", "valloss", "validationloss", "evalloss", "testloss", "heldoutloss"),
        *("loss", "finalloss", "nll", "crossentropy", "trainloss", "trainingloss"),
    ),
    "flops": ("c", "flops", "flop", "trainingflops", "trainingflop", "trainflops", "compute", "budget", "totalflops"),
}
_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kmgbt]?)", re.IGNORECASE)
_NAMED_ROWS = 3


class Columns(NamedTuple):
    """Names of columns in the file; None where it is to be recognised, or is not there."""

    parameters: str | None = None
    tokens: str | None = None
    loss: str | None = None
    flops: str | None = None


@dataclass(frozen=True)
class RunsTable:
    """Runs as a file has them. `C` are its FLOPs, or 6·N·D; `columns` the names they were read from; `notes` in words.

    `lines` are the lines of the runs in the file, counted from 1.
    """

    N: Float[np.ndarray, "runs"]
    D: Float[np.ndarray, "runs"]
    L: Float[np.ndarray, "runs"]
    C: Float[np.ndarray, "runs"]
    lines: tuple[int, ...]
    columns: Columns
    notes: tuple[str, ...]


def read_runs(path: Path, columns: Columns | None = None, *, skip_bad: bool = False) -> RunsTable:
    """The runs of a CSV (comma, semicolon or tab; with a header) or of JSON lines (.jsonl, .ndjson, or by content).

    A file without tokens but with FLOPs has D = C / (6 N). `skip_bad` leaves rows out that cannot be read, and says
    so in `notes`. Raises `InputError` for a file that is no such table, columns that are missing or named wrongly, and
    bad rows, by their lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text (byte {error.start}): expected CSV or JSON lines") from error
    if not text.strip():
        raise InputError(f"{path} is empty: expected a run a line, with parameters, tokens and loss")
    as_json = path.suffix.lower() in (".jsonl", ".ndjson") or text.lstrip().startswith("{")
    rows, names, bad = _json_rows(text) if as_json else _csv_rows(path, text)
    found, notes = _recognise(path, names, columns or Columns())
    values, lines = [], []
    for line, row in rows:
        try:
            values.append([math.nan if name is None else _number(name, row) for name in found])
            lines.append(line)
        except InputError as error:
            bad.append((line, str(error)))
    if bad and not skip_bad:
        bad.sort()
        shown = "; ".join(f"line {line}: {reason}" for line, reason in bad[:_NAMED_ROWS])
        more = f"; and {len(bad) - _NAMED_ROWS} more" if len(bad) > _NAMED_ROWS else ""
        raise InputError(f"{path}: {shown}{more}. Mend them, or leave them out with --skip-bad")
    if bad:
        notes.append(f"left out, unreadable: line {', '.join(str(line) for line, _ in sorted(bad))}")
    if not values:
        raise InputError(f"{path} holds no run that can be read")
    N, D, L, C = np.array(values, dtype=np.float64).T
    if found.tokens is None:
        D = C / (6 * N)
        notes.append(f"no tokens in the file: D = C / (6 N) from {found.flops!r}")
    elif found.flops is None:
        C = 6 * N * D
    return RunsTable(N, D, L, C, tuple(lines), found, tuple(notes))


Row = tuple[int, dict[str, Any]]
Bad = tuple[int, str]


def _csv_rows(path: Path, text: str) -> tuple[list[Row], list[str], list[Bad]]:
    header = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        filled = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path} is no CSV: line {reader.line_num}: {error}") from error
    if not filled:
        raise InputError(f"{path} holds nothing but blanks: expected a header and a run a line")
    names = [name.strip() for name in filled[0][1]]
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise InputError(f"{path}: the header names {', '.join(map(repr, sorted(twice)))} twice: rename one")
    rows: list[Row] = []
    bad: list[Bad] = []
    for line, row in filled[1:]:
        if len(row) == len(names):
            rows.append((line, dict(zip(names, row, strict=True))))
        else:
            bad.append((line, f"{len(row)} fields, where the header has {len(names)}"))
    return rows, names, bad


def _json_rows(text: str) -> tuple[list[Row], list[str], list[Bad]]:
    rows: list[Row] = []
    bad: list[Bad] = []
    names: dict[str, None] = {}
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except ValueError:
            bad.append((line, "no JSON"))
            continue
        if not isinstance(value, dict):
            bad.append((line, f"{type(value).__name__}, expected an object of names and numbers"))
            continue
        rows.append((line, value))
        names.update(dict.fromkeys(value))
    return rows, list(names), bad


def _recognise(path: Path, names: list[str], given: Columns) -> tuple[Columns, list[str]]:
    """Which column is what, and what to say of a choice between several."""
    found: dict[str, str | None] = {}
    notes: list[str] = []
    for role, name in given._asdict().items():
        if name is not None and name not in names:
            raise InputError(f"--{role} {name!r}: {path} has no such column, but {', '.join(map(repr, names))}")
        fitting = [name] if name is not None else list(_fitting(role, names))
        found[role] = fitting[0] if fitting else None
        if len(fitting) > 1:
            notes.append(f"{role} read from {fitting[0]!r}, not from {', '.join(map(repr, fitting[1:]))} (--{role})")
    missing = [role for role in ("parameters", "loss") if found[role] is None]
    if found["tokens"] is None and found["flops"] is None:
        missing.insert(len(missing) and 1, "tokens")
    if missing:
        options = " ".join(f"--{role} NAME" for role in missing)
        raise InputError(
            f"{path}: no column is known for {', '.join(missing)} among {', '.join(map(repr, names))}: say {options}"
        )
    return Columns(**found), notes


def _fitting(role: str, names: list[str]) -> Iterator[str]:
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    return (plain[known] for known in RECOGNISED[role] if known in plain)


def _number(name: str, row: dict[str, Any]) -> float:
    value = row.get(name)
    if isinstance(value, str):
        match = _NUMBER.fullmatch(re.sub(r"(?<=\d)[_,](?=\d)", "", value.strip()))
        number = float(match[1]) * _SUFFIXES[match[2].lower()] if match else math.nan
    else:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name} is {value!r}, expected a finite number above 0")
    return number
