"""`verim data`: text to a data set that models are trained on, and what a data set holds."""

import json as json_module
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from verim.data import BuildConfig, Dataset, Loader, build
from verim.data.manifest import PARTS, Manifest
from verim.errors import InputError

_PLAIN_SECONDS = 15.0


@dataclass(frozen=True)
class Build:
    """Build a data set: duplicates out, text to tokens, a part of the documents held out.

    Reads UTF-8 text, JSON lines (.jsonl, .ndjson) and Parquet, the first two also packed (.gz, .zst), and folders of
    these. The text may be larger than memory; it lies on the disk beside the result while it is worked on.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")]
    """Files and folders of text."""

    out: Path
    """The directory of the data set."""

    config: Annotated[BuildConfig, tyro.conf.arg(name="")] = field(default_factory=BuildConfig)

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of text."""

    def run(self) -> None:
        """Builds, and says what has become."""
        with _BuildProgress(Console(stderr=True)) as progress:
            manifest = build(self.paths, self.out, self.config, progress.tell)
        _print(self.out, manifest, {}, self.json)


@dataclass(frozen=True)
class Info:
    """Check a data set and say what it holds."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """The directory of the data set."""

    measure: bool = False
    """Measure how fast training batches come from it."""

    batch: int = 16
    """Sequences of a batch to measure."""

    length: int = 1024
    """Tokens of a sequence to measure."""

    seconds: float = 2.0
    """How long to measure."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of text."""

    def run(self) -> None:
        """Compares every file with its checksum, then says what the data set is."""
        data = Dataset(self.path)
        more = {}
        if self.measure:
            if not self.seconds > 0:
                raise InputError(f"--seconds {self.seconds}: expected more than 0")
            more["tokens_per_second"] = self._pace(data)
        _print(self.path, data.manifest, more, self.json)

    def _pace(self, data: Dataset) -> float:
        loader = Loader(data.train, self.batch, self.length, seed=0)
        loader.batch(0)  # compiles
        step, began = 0, time.perf_counter()
        while time.perf_counter() - began < self.seconds:
            step += 1
            loader.batch(step)
        return step * self.batch * self.length / (time.perf_counter() - began)


@dataclass(frozen=True)
class DataCommand:
    """Data sets: text made ready for training."""

    action: Annotated[
        Annotated[Build, tyro.conf.subcommand("build")] | Annotated[Info, tyro.conf.subcommand("info")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Does what was chosen."""
        self.action.run()


class _BuildProgress:
    """A bar for each stage on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console, self._stage, self._told = console, "", 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TransferSpeedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "_BuildProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, stage: str, done: int, total: int) -> None:
        """The `Watcher` of a build."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._task = stage, self._bar.add_task(stage, total=total or None)
            self._said = now - _PLAIN_SECONDS
        self._bar.update(self._task, completed=done)
        if not self._console.is_terminal and now - self._said >= _PLAIN_SECONDS:
            self._said = now
            of = f" of {total:,}" if total else ""
            self._console.print(f"{stage}: {done:,}{of} bytes", markup=False, highlight=False, soft_wrap=True)


def _print(path: Path, manifest: Manifest, more: dict[str, Any], json: bool) -> None:
    if json:
        totals = {
            part: {name: manifest.total(name, part) for name in ("tokens", "documents", "bytes")} for part in PARTS
        }
        record = asdict(manifest) | totals | {"bytes_per_token": manifest.bytes_per_token} | more
        print(json_module.dumps({"path": str(path), **record}))
        return
    print(f"{path}: {manifest.name}")
    for part in PARTS:
        tokens, documents, size = (manifest.total(name, part) for name in ("tokens", "documents", "bytes"))
        print(f"{part.replace('_', '-')}: {tokens:,} tokens, {documents:,} documents, {size:,} bytes of text")
    print(
        f"tokenizer: {manifest.tokenizer}, {manifest.vocab:,} tokens as {manifest.token_type}, "
        f"{manifest.bytes_per_token:.3f} bytes a token"
    )
    left_out = {"duplicates": manifest.duplicates, "near duplicates": manifest.near_duplicates, **manifest.skipped}
    if any(left_out.values()):
        print("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count))
    for note in manifest.notes:
        print(note)
    if "tokens_per_second" in more:
        print(f"batches: {more['tokens_per_second'] / 1e6:,.0f} million tokens a second")
