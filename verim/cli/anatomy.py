"""`verim anatomy`: where every second, byte and FLOP of a training step goes."""

import json as json_module
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from verim.anatomy import (
    Ceilings,
    Record,
    Workload,
    adamw,
    advise,
    ceilings_of,
    check_fits,
    machine_card,
    memory_picture,
    model_config,
    record,
    write_trace,
)
from verim.anatomy.terminal import print_ledger
from verim.errors import InputError
from verim.models import LanguageModel, LanguageModelConfig
from verim.report.anatomy import anatomy_page
from verim.runs import RunDirectory
from verim.runtime.allocator import keep_freed_blocks
from verim.runtime.files import write_text

_FEWEST = 5


@dataclass(frozen=True)
class AnatomyCommand:
    """Where every second, byte and FLOP of a training step goes: its parts, modules and ops, and its memory.

    Whether the step fits into memory is predicted before it runs. Steps are recorded in turns with steps that are
    not, so that the cost of recording is known.

    `verim anatomy sweep --over batch` measures it along an axis (a run directory named sweep is ./sweep).
    """

    run_directory: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run", metavar="[RUN]")] = None
    """A run directory, whose model is measured; without it, the model that the options below name."""

    model: str = "transformer"
    """An architecture of `verim study`, or a mixer: a uniform model of it."""

    width: int = 256
    """Channels of the model; its depth follows."""

    batch: int = 8
    """Sequences of a step."""

    length: int = 256
    """Tokens of a sequence."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the forward pass under autocast, the weights in float32."""

    checkpointing: bool = False
    """Blocks keep only their inputs and run a second time in the backward pass."""

    accumulation: int = 1
    """The batch in so many parts, one after the other."""

    steps: int = 24
    """How many steps, at least 5: more give better medians."""

    threads: int | None = None
    """On how many threads; torch's own number if none is given."""

    trace: Path | None = None
    """A file for a trace of one step, for ui.perfetto.dev or chrome://tracing."""

    memory_picture: Path | None = None
    """A file for a picture of the memory over the step (SVG)."""

    html: Path | None = None
    """A file for a page (HTML, all in one file): the step as a flame, the ledger, the roofline, the memory, and what
    would gain most."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of tables."""

    def run(self) -> None:
        """Predicts, measures, prints."""
        if self.steps < _FEWEST:
            raise InputError(f"--steps {self.steps}: expected {_FEWEST} or more, for one of every kind")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads {self.threads}: expected 1 or more")
        for path in (self.trace, self.memory_picture, self.html):
            if path is not None and not path.absolute().parent.is_dir():
                raise InputError(f"{path}: there is no folder {path.absolute().parent} to write it to")
        keep_freed_blocks()
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            self._measure()
        finally:
            torch.set_num_threads(before)

    def _measure(self) -> None:
        config = self._config()
        workload = Workload(self.batch, self.length, self.dtype, self.checkpointing, self.accumulation)
        available = machine_card()["memory_available_bytes"]
        predicted = check_fits(config, workload, float("inf") if available is None else available)
        model = LanguageModel(config)
        workload.prepare(model)
        optimiser = adamw(model)
        with record(model) as recording:
            for _ in range(self.steps):
                workload.step(model, optimiser, workload.draw(model))
        ledger = replace(recording.result, notes=(*recording.result.notes, *_notes(config, model)))
        if self.trace is not None:
            write_trace(ledger, self.trace)
        if self.memory_picture is not None:
            write_text(self.memory_picture, memory_picture(ledger.memory))
        if self.html is not None:
            free = None if available is None else available - predicted.peak_bytes
            title = f"{self.run_directory or self.model}, width {config.width}"
            tokens = self.batch * self.length
            anatomy_page(ledger, self.html, title, advise(ledger, _every_peak(ledger), free), tokens)
        if self.json:
            values = {"model": config.to_json(), "predicted_memory": predicted.to_json(), **ledger.to_json()}
            print(json_module.dumps(values))
            return
        console = Console()
        print_ledger(ledger, console)
        said, found = predicted.peak_bytes, ledger.memory.allocator_peak_bytes or ledger.memory.peak_bytes
        console.print(f"Memory predicted before the run: {said / 1e6:.4g} MB, {said / found - 1:+.1%}.", style="dim")

    def _config(self) -> LanguageModelConfig:
        if self.run_directory is None:
            return model_config(self.model, self.width)
        config = RunDirectory(self.run_directory).config()
        if "model" not in config:
            raise InputError(f"{self.run_directory}/config.json has no model: it is not a run of a language model")
        return LanguageModelConfig.from_json(config["model"])


def _every_peak(ledger: Record) -> Ceilings:
    """Also of types that the step does not use: what would they gain? None of these is measured too low beside it."""
    ceilings = ledger.ceilings
    return ceilings_of(ceilings.device, ("bfloat16",), ceilings.threads).best_of(ceilings)


def _notes(config: LanguageModelConfig, model: LanguageModel) -> tuple[str, ...]:
    counts = model.parameter_count()
    return (
        f"{counts.total} parameters in all, {counts.non_embedding} without the input embedding, depth {config.depth}",
    )
