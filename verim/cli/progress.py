"""How a study shows itself while it runs: a bar with an end time on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from verim.scaling.ladder import Ladder, RunSpec
from verim.scaling.speed import Candidate
from verim.scaling.study import StudyConfig

_PLAIN_SECONDS = 15.0


class StudyProgress:
    """The `Watcher` of a study on `console`. Work is counted in expected seconds of one process."""

    def __init__(self, console: Console, config: StudyConfig, directory: Path) -> None:
        self.console, self.config = console, config
        self.expected: dict[str, float] = {}
        self.done: dict[str, float] = {}
        self.proof = ""
        self.target_seconds = config.target_seconds
        self.began = self.told = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("study", total=None)
        self._say(f"study in {directory}")

    def __enter__(self) -> "StudyProgress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def stage(self, text: str) -> None:
        self.bar.update(self.task, description=text.split(":")[0][:40])
        self._say(text)

    def ladder(self, ladder: Ladder, measured: dict[str, list[Candidate]], target_seconds: float) -> None:
        sizes = {(c.architecture, c.width): c for candidates in measured.values() for c in candidates}
        table = Table(title="The ladder", title_justify="left", box=None, pad_edge=False)
        for column in ("architecture", "FLOPs", "non-embedding parameters", "million bytes"):
            table.add_column(column, justify="left" if column == "architecture" else "right")
        table.add_column("expected s", justify="right")
        for name in measured:
            for budget in ladder.budgets:
                rung = [run for run in ladder.runs if run.architecture == name and run.budget == budget]
                first = {run.width: run for run in reversed(rung)}
                table.add_row(
                    name,
                    f"{budget:.2e}",
                    " ".join(f"{sizes[name, w].non_embedding:,}" for w in sorted(first)),
                    " ".join(f"{first[w].tokens / 1e6:.2g}" for w in sorted(first)),
                    f"{sum(run.expected_seconds for run in rung):.0f}",
                )
        self.console.print(table)
        self._say(
            f"{len(ladder.runs)} runs, expected {ladder.seconds:.0f} s together, then the proof, {target_seconds:.0f} s"
        )
        self.expected = {run.id: run.expected_seconds for run in ladder.runs}
        self.parallel = sum(self.expected.values()) / ladder.seconds
        self.stage("training the ladder")
        self._update()

    def extended(self, specs: Sequence[RunSpec]) -> None:
        self.expected |= {spec.id: spec.expected_seconds for spec in specs}
        self._say(f"{len(specs)} minima lie on the edge of the ladder: a size beyond it for each")
        self._update()

    def planned(self, spec: RunSpec, loss: float) -> None:
        self.proof, self.target_seconds = spec.id, spec.expected_seconds
        self.stage(
            f"the proof: {spec.architecture} of width {spec.width}, expected {loss:.3f} bits per byte after "
            f"{spec.expected_seconds:.0f} s"
        )

    def progress(self, run: str, fraction: float) -> None:
        self.done[run] = fraction
        self._update()
        if not self.console.is_terminal and time.monotonic() - self.told > _PLAIN_SECONDS:
            self.told = time.monotonic()
            done, total = self._work()
            self._say(f"{100 * done / total:.0f} % done")

    def finished(self, spec: RunSpec, result: dict[str, Any]) -> None:
        self.done[spec.id] = 1.0
        self._update()
        self._say(
            f"{spec.architecture} width {spec.width}, {spec.budget:.1e} FLOPs, seed {spec.seed}: "
            f"{result['bits_per_byte']:.4f} bits per byte in {result['seconds']:.1f} s"
        )

    def _work(self) -> tuple[float, float]:
        ladder = sum(self.expected.values()) / self.parallel
        done = sum(self.expected[run] * part for run, part in self.done.items() if run in self.expected)
        proof = self.done.get(self.proof, 0.0)
        return done / self.parallel + proof * self.target_seconds, ladder + self.target_seconds

    def _update(self) -> None:
        done, total = self._work()
        self.bar.update(self.task, completed=done, total=total)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
