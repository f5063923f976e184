"""`verim whatif`: what a training step would take on hardware that need not be here."""

import json as json_module
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from verim.anatomy import Workload, model_config
from verim.anatomy.devices import device as device_named
from verim.anatomy.whatif import Forecast, rates_here
from verim.errors import InputError
from verim.models import LanguageModelConfig
from verim.runs import RunDirectory
from verim.runtime.files import read_json
from verim.scaling.planning.fleet import precision_of
from verim.scaling.whatif import forecast_layout
from verim.train.parallel import ParallelConfig

_SHOWN = 10


@dataclass(frozen=True)
class WhatifCommand:
    """What a training step would take on other hardware: seconds by op, memory, tokens, energy and cost of a day.

    Nothing of the model is computed: its ops, FLOPs and bytes are known from shapes. This machine's prices of ops are
    measured once (about a minute) and kept.
    """

    run_directory: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="config", metavar="[CONFIG]")] = None
    """A run directory, or a JSON file of a model's configuration; without it, the model that the options below name."""

    model: str = "transformer"
    """An architecture of `verim study`, or a mixer: a uniform model of it."""

    width: int = 256
    """Channels of the model; its depth follows."""

    batch: int = 8
    """Sequences of a step of all devices."""

    length: int = 256
    """Tokens of a sequence."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """bfloat16 runs the forward pass under autocast, the weights in float32; it is meant on GPUs that have units for it
    where nothing is said."""

    checkpointing: bool = False
    """Blocks keep only their inputs and run a second time in the backward pass."""

    accumulation: int = 1
    """A device's rows in so many parts, one after the other."""

    device: str = "this"
    """A device of the table ("h100", "rtx4090"; an unknown name lists them), or "this": this machine, as measured."""

    count: int | None = None
    """How many of them: as many as `parallel` has ranks if no number is given; of them copies, if no layout is."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the step is divided over them."""

    price_per_hour: float | None = None
    """What one device costs an hour, in any currency."""

    kilowatt_hour_price: float | None = None
    """What energy costs, where no price an hour is given."""

    refresh: bool = False
    """Measure this machine's prices of ops again."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of tables."""

    def run(self) -> None:
        """Predicts and prints."""
        for name in ("price_per_hour", "kilowatt_hour_price"):
            if (price := getattr(self, name)) is not None and not price > 0:
                raise InputError(f"--{name.replace('_', '-')} {price}: expected a positive price")
        if self.count is not None and self.count < 1:
            raise InputError(f"--count {self.count}: expected 1 or more")
        device = replace(device_named(self.device), price_per_hour=self.price_per_hour)
        parallel = self.parallel
        if parallel == ParallelConfig() and self.count is not None:
            parallel = replace(parallel, data=self.count)
        parallel.check_ranks(self.count or parallel.ranks)
        workload = Workload(
            self.batch, self.length, self.dtype or _usual(precision_of(device)), self.checkpointing, self.accumulation
        )
        rates = rates_here(self.refresh, _say) if device.name == "this-machine" else None
        found = forecast_layout(self._config(), workload, device, parallel, rates)
        if self.json:
            print(json_module.dumps(found.to_json() | {"day_cost": found.day_cost(self.kilowatt_hour_price)}))
        else:
            _print(found, found.day_cost(self.kilowatt_hour_price))

    def _config(self) -> LanguageModelConfig:
        if self.run_directory is None:
            return model_config(self.model, self.width)
        if self.run_directory.is_dir():
            values = RunDirectory(self.run_directory).config()
            if "model" not in values:
                raise InputError(f"{self.run_directory}/config.json has no model: it is not a run of a language model")
            return LanguageModelConfig.from_json(values["model"])
        values = read_json(self.run_directory)
        return LanguageModelConfig.from_json(values.get("model", values))


def _usual(precision: str) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if precision == "bfloat16" else "float32"


def _say(done: int, of: int) -> None:
    print(f"verim: measuring this machine, step {done + 1} of {of}", file=sys.stderr)


def _print(found: Forecast, cost: float | None) -> None:
    console = Console()
    step, rate = found.step_seconds, found.tokens_per_second
    devices = f"{found.count} × {found.device.name}"
    console.print(
        f"A step on {devices} takes {step.likely * 1e3:.4g} ms ({step.low * 1e3:.4g} to {step.high * 1e3:.4g}): "
        f"{rate.likely:,.0f} tokens/s ({rate.low:,.0f} to {rate.high:,.0f})."
    )
    console.print(
        f"{found.utilisation:.1%} of the dense {found.dtype} peak; {found.memory_bytes / 1e9:.3g} GB of "
        f"{found.device.memory_bytes / 1e9:.3g} GB on the fullest device."
    )
    waits = ", ".join(f"{name} {seconds / step.likely:.0%}" for name, seconds in found.bounds.items())
    console.print(f"Of the step: {waits}, waiting for other devices {found.waiting.likely / step.likely:.0%}.")
    table = Table("op", "calls", "ms", "share", "GFLOPs", "MB", title=f"The {_SHOWN} ops that take most")
    for op in found.by_op()[:_SHOWN]:
        table.add_row(
            op.name,
            f"{op.calls:.0f}",
            f"{op.seconds * 1e3:.3g}",
            f"{op.seconds / step.likely:.1%}",
            f"{op.hardware_flops / 1e9:.3g}",
            f"{op.bytes / 1e6:.3g}",
        )
    console.print(table)
    day = f"A day: {found.day_tokens:.3g} tokens"
    if found.day_kilowatt_hours is not None:
        day += f", at most {found.day_kilowatt_hours:,.0f} kWh"
    if cost is not None:
        day += f", costs {cost:,.2f}"
    console.print(f"{day}.")
    console.print(f"Rests on {found.basis}.", style="dim")
