"""`verim bench`: the ops beside other software that computes the same, and beside what the machine can do."""

import json as json_module
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verim.bench import (
    COLUMNS,
    LEGEND,
    SUBJECTS,
    OpRecord,
    append,
    as_json,
    check_ours,
    check_place,
    conditions,
    heading,
    load_peers,
    measure,
    rows,
    title,
)
from verim.errors import InputError
from verim.runtime.allocator import keep_freed_blocks


@dataclass(frozen=True)
class BenchCommand:
    """The ops beside other software that computes the same, and beside what the machine can do.

    Correctness comes first: ours against its definition, every peer against ours, results and gradients. Whoever
    disagrees is not timed, and the command ends with an error. Then all sides take turns in one process, with freed
    memory kept (the best case for the peers). Peers that are not installed are named: pip install 'verim[bench]'.
    """

    ops: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[OP ...]")] = ()
    """Which ops; all of them if none is named."""

    threads: int | None = None
    """On how many threads; torch's own number if none is given."""

    rounds: int | None = None
    """How many turns each side takes, fewer if they take seconds; 7 if none is given, 3 with --quick."""

    quick: bool = False
    """Small shapes, to see that all is well: the figures mean little."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of tables."""

    record: Path | None = None
    """A Markdown file to which a dated section with versions is appended, as benchmarks/RESULTS.md."""

    def run(self) -> None:
        """Measures, prints a table for each op as it is done, and keeps the record."""
        unknown = [op for op in self.ops if op not in SUBJECTS]
        if unknown:
            raise InputError(f"unknown op {unknown[0]!r}: expected some of {', '.join(SUBJECTS)}")
        for name, value in (("threads", self.threads), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: expected 1 or more")
        if self.record is not None:
            check_place(self.record)
        keep_freed_blocks()
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            self._measure()
        finally:
            torch.set_num_threads(before)

    def _measure(self) -> None:
        console = Console()
        rounds = self.rounds or (3 if self.quick else 7)
        ops = []
        for name in dict.fromkeys(self.ops or SUBJECTS):
            waiting = console.status(f"{name} ...") if console.is_terminal and not self.json else nullcontext()
            with waiting:
                subject = SUBJECTS[name]
                check_ours(subject)
                cases = subject.cases(self.quick)
                peers, missing = load_peers(subject, cases)
                measured = tuple(measure(subject, case, peers, rounds) for case in cases)
            ops.append(OpRecord(name, subject.axes, measured, tuple(missing)))
            if not self.json:
                _print(console, ops[-1])
        record = as_json(ops, torch.get_num_threads(), rounds, self.quick)
        if self.record is not None:
            append(self.record, record, ops)
        if self.json:
            print(json_module.dumps(record))
            return
        console.print(Text(f"{LEGEND}\n{conditions(record)}.", style="dim"))
        if self.record is not None:
            console.print(Text(f"Recorded in {self.record}."), soft_wrap=True)


def _print(console: Console, op: OpRecord) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(COLUMNS):
        table.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    for case in op.cases:
        table.add_row(Text(title(case)), style="bold")
        for row, style in zip(rows(case), ["green", *[""] * (len(case.sides) - 1), "dim"], strict=True):
            table.add_row(Text(f"  {row[0]}"), *(Text(cell) for cell in row[1:]), style=style)
    console.print(Text(heading(op), style="bold"))
    console.print(table)
    console.print()
