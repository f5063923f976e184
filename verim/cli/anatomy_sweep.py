"""`verim anatomy sweep`: a training step along one axis, and where its curve bends."""

import json as json_module
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from verim.anatomy import Workload, machine_card, model_config
from verim.anatomy.sweep import Axis, Sweep, sweep
from verim.anatomy.sweep_terminal import print_sweep
from verim.errors import InputError
from verim.report.anatomy import sweeps_page
from verim.runtime.allocator import keep_freed_blocks


@dataclass(frozen=True)
class AnatomySweepCommand:
    """A training step along one axis: where the machine stops being idle, where memory ends, what a precision and what
    more threads are worth, and the backward pass beside the forward pass.

    Steps are measured one value after the other; a value whose predicted memory is not there is not run, but told.
    """

    over: Axis
    """What is varied; the options below say what all else is."""

    values: Annotated[tuple[str, ...], tyro.conf.arg(metavar="VALUE ...")] = ()
    """The values, ascending (names for dtype); a few of each axis if none are given."""

    model: str = "transformer"
    """An architecture of `verim study`, or a mixer: a uniform model of it."""

    width: int = 128
    """Channels of the model; its depth follows."""

    batch: int = 8
    """Sequences of a step."""

    length: int = 128
    """Tokens of a sequence."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """A lower precision runs the forward pass under autocast, the weights in float32."""

    steps: int = 9
    """How many steps at each value, at least 5: more give better medians."""

    threads: int | None = None
    """On how many threads; torch's own number if none is given."""

    html: Path | None = None
    """A file for a page with the curves (HTML, all in one file)."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of a table."""

    def run(self) -> None:
        """Measures, prints."""
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads {self.threads}: expected 1 or more")
        if self.html is not None and not self.html.absolute().parent.is_dir():
            raise InputError(f"{self.html}: there is no folder {self.html.absolute().parent} to write it to")
        keep_freed_blocks()
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            found = self._measure()
        finally:
            torch.set_num_threads(before)
        if self.html is not None:
            width = "" if self.over == "width" else f", width {self.width}"
            sweeps_page([found], self.html, f"{self.model}{width}, over {self.over}")
        if self.json:
            print(json_module.dumps({"model": self.model, "width": self.width, **found.to_json()}))
        else:
            print_sweep(found, Console())

    def _measure(self) -> Sweep:
        available = machine_card()["memory_available_bytes"]
        return sweep(
            partial(model_config, self.model),
            self.width,
            self.over,
            self.values or None,
            Workload(self.batch, self.length, self.dtype),
            self.steps,
            math.inf if available is None else available,
        )
