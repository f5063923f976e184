"""What was measured, as JSON values, as the rows of a table, and as a dated section of a Markdown file."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from verim import __version__
from verim.anatomy import machine_card
from verim.anatomy.machine import version_of
from verim.bench.measure import Measured, Side
from verim.errors import InputError
from verim.runtime.files import write_text

COLUMNS = ("", "forward ms", "ratio", "ceiling", "both ms", "ratio", "ceiling")
LEGEND = (
    "Medians of turns taken in one process; both is forward and backward. A side that takes seconds has fewer turns, "
    "which its row then counts. Ratio: the time as a multiple of ours. Ceiling: the least time that the machine needs, "
    "as a share of the time; its own row says how long that is, and which part of the machine sets it; – where its "
    "loop is too short, or slower than a side, and so says nothing."
)


@dataclass(frozen=True)
class OpRecord:
    """One op's cases, and the peers that are not installed."""

    name: str
    axes: str
    cases: tuple[Measured, ...]
    missing: tuple[str, ...]


def as_json(ops: Sequence[OpRecord], threads: int, rounds: int, quick: bool) -> dict[str, Any]:
    """Everything about the measurement: machine, versions, settings, seconds."""
    packages = sorted({side.package for op in ops for case in op.cases for side in case.sides} - {"verim"})
    return {
        "verim": __version__,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine_card(),
        "versions": {package: version_of(package) for package in packages},
        "threads": threads,
        "rounds": rounds,
        "quick": quick,
        "ops": [
            {
                "op": op.name,
                "axes": op.axes,
                "missing": list(op.missing),
                "cases": [
                    {
                        "shape": case.label,
                        "dtype": case.dtype,
                        "sides": [asdict(side) | _ratios(case, side) for side in case.sides],
                        "failed": list(case.failed),
                        "ceiling": {"forward": asdict(case.forward), "both": asdict(case.both)},
                    }
                    for case in op.cases
                ],
            }
            for op in ops
        ],
    }


def _ratios(case: Measured, side: Side) -> dict[str, float | None]:
    """Beside ours, and the share of the ceiling, which is None where the ceiling says nothing."""
    ours = case.sides[0]
    return {
        "forward_ratio": side.forward_seconds / ours.forward_seconds,
        "both_ratio": side.both_seconds / ours.both_seconds,
        "forward_of_ceiling": case.forward.seconds / side.forward_seconds if case.forward.holds else None,
        "both_of_ceiling": case.both.seconds / side.both_seconds if case.both.holds else None,
    }


def title(case: Measured) -> str:
    """The shape, the data type where it is not float32, and who failed."""
    words = [
        case.label,
        *([case.dtype] if case.dtype != "float32" else []),
        *(f"{name} failed" for name in case.failed),
    ]
    return ", ".join(words)


def rows(case: Measured) -> list[tuple[str, ...]]:
    """A row for each side, ours first, and one for the ceiling, under the headings of `COLUMNS`."""
    table, most = [], max(side.rounds for side in case.sides)
    for side in case.sides:
        ratios = _ratios(case, side)
        cells = [side.name + (f" ({side.rounds} of {most})" if side.rounds < most else "")]
        for part in ("forward", "both"):
            ratio, share = ratios[f"{part}_ratio"] or 0.0, ratios[f"{part}_of_ceiling"]
            cells += [_milliseconds(getattr(side, f"{part}_seconds")), f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"]
            cells.append("–" if share is None else f"{share:.0%}")
        table.append(tuple(cells))
    ceilings = ((_milliseconds(ceiling.seconds), "", ceiling.name) for ceiling in (case.forward, case.both))
    table.append(("ceiling", *(cell for three in ceilings for cell in three)))
    return table


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def heading(op: OpRecord) -> str:
    """The op, what its shapes are, and which peers are missing."""
    missing = f"; not installed, so not compared: {', '.join(op.missing)}" if op.missing else ""
    return f"{op.name}, {op.axes}{missing}"


def conditions(record: dict[str, Any]) -> str:
    """Where and with what it was measured, in a line."""
    machine = record["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {record['threads']} threads; verim {record['verim']}, "
        f"{versions}, numba {machine['numba']}, Python {machine['python']}; median of {record['rounds']} rounds"
        + (", small shapes (--quick)" if record["quick"] else "")
    )


def check_place(path: Path) -> None:
    """Raises `InputError` where no record can be kept at `path`, so that nothing is measured in vain."""
    if not path.parent.is_dir():
        raise InputError(f"--record {path}: there is no folder {path.parent}: make it, or name another place")
    if path.is_dir():
        raise InputError(f"--record {path} is a folder: name a Markdown file in it, as {path / 'RESULTS.md'}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.R_OK)):
        raise InputError(f"--record {path} cannot be written: name another place, or change its permissions")


def append(path: Path, record: dict[str, Any], ops: Sequence[OpRecord]) -> None:
    """Appends a dated section to the Markdown file `path`, which is made where it is not there; whole or not at all."""
    check_place(path)
    lines = [f"## {record['date'][:10]}", "", conditions(record) + ".", ""]
    for op in ops:
        lines += [f"**{heading(op)}**", "", _markdown_row(("shape", "side", *COLUMNS[1:]))]
        lines.append("|---|---|" + "---:|" * (len(COLUMNS) - 1))
        lines += [_markdown_row((title(case), *row)) for case in op.cases for row in rows(case)]
        lines.append("")
    before = path.read_text(encoding="utf-8").rstrip() if path.exists() else f"# Measured\n\n{LEGEND}"
    write_text(path, before + "\n\n" + "\n".join(lines))


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
