"""How a training run shows itself: a bar with the last step's figures on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_SECONDS = 10.0


class TrainingLines:
    """Told of every step (`step`); evaluations are always shown in a line of their own."""

    def __init__(self, console: Console, directory: Path, steps: int) -> None:
        self.console, self.steps = console, steps
        self.told = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps)
        self._say(f"run in {directory}")

    def __enter__(self) -> "TrainingLines":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, record: Mapping[str, float]) -> None:
        """A step's line of the metrics."""
        self.bar.update(self.task, completed=record["step"], description=sentence(record, self.steps))
        evaluated = "bits_per_byte" in record
        quiet = self.console.is_terminal or time.monotonic() - self.told < _PLAIN_SECONDS
        if evaluated or not quiet:
            self.told = time.monotonic()
            self._say(sentence(record, self.steps))

    def warn(self, warning: str) -> None:
        """Something that the user should know now."""
        self._say(f"warning: {warning}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def sentence(record: Mapping[str, float], steps: int) -> str:
    """A step in a line: loss, bits per byte, gradient norm, rate, utilisation, memory, and the held-out figure."""
    parts = [f"step {record['step']:,.0f}/{steps:,}", f"loss {record['loss']:.4f}"]
    if "training_bits_per_byte" in record:
        parts.append(f"{record['training_bits_per_byte']:.3f} bits/byte")
    parts.append(f"gradient {record['gradient_norm']:.2f}")
    parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if "utilisation" in record:
        parts.append(f"{100 * record['utilisation']:.2g} % of the matmul peak")
    if record["memory_bytes"]:
        parts.append(f"{record['memory_bytes'] / 1e9:.2f} GB")
    parts.append(f"{record['seconds_left']:.0f} s left")
    if "bits_per_byte" in record:
        parts.append(f"held out {record['bits_per_byte']:.4f} bits/byte")
    return ", ".join(parts)
