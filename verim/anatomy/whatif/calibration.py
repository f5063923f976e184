"""Steps that are run here so that others need not be: what this machine's prices are fitted to."""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verim.anatomy.ceilings import Ceilings
from verim.anatomy.ledger import Op
from verim.anatomy.machine import machine_card, usable_cores
from verim.anatomy.recorder import record
from verim.anatomy.whatif.fitted import FittedRates, Measured, fit
from verim.anatomy.workload import Workload, adamw, model_config
from verim.errors import CorruptError, InputError
from verim.models import LanguageModel
from verim.runtime.allocator import keep_freed_blocks
from verim.runtime.cache import cache_directory
from verim.runtime.files import read_json, write_json

_FEWEST, _MOST = 9, 60
_ANY = Ceilings("cpu", 1, {"float32": 1.0}, ((1, 1.0),), 1.0)
"""A ledger judges its ops by ceilings; here nobody asks for the judgement."""


@dataclass(frozen=True)
class Setting:
    """A model by its name and width, and the batch of a step."""

    model: str
    width: int
    batch: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.width}, {self.batch} × {self.length}"


FAMILIES = ("transformer", "mamba", "mamba2", "rwkv4", "rwkv7", "lstm", "min_gru")
SHAPES = ((64, 4, 64), (64, 16, 128), (128, 4, 256), (192, 8, 128), (256, 2, 128), (256, 8, 64))
"""Width, batch, length."""
CALIBRATION = tuple(Setting(family, *shape) for family, shape in itertools.product(FAMILIES, SHAPES))


def measure(setting: Setting, seconds: float = 0.6) -> Measured:
    """Runs the setting's training step for about `seconds` and records it."""
    workload, model = Workload(setting.batch, setting.length), LanguageModel(model_config(setting.model, setting.width))
    optimiser = adamw(model)

    def step() -> float:
        began = time.perf_counter()
        workload.step(model, optimiser, workload.draw(model))
        return time.perf_counter() - began

    step()
    count = max(_FEWEST, min(_MOST, round(seconds / step())))
    with record(model, ceilings=_ANY) as recording:
        for _ in range(count):
            step()
    found = recording.result
    return Measured(setting.name, found.step_seconds, found.ops)


def rates_here(refresh: bool = False, told: Callable[[int, int], None] = lambda done, of: None) -> FittedRates:
    """This machine's prices: kept from before, else fitted to steps measured now (about a minute).

    `told(done, of)` hears how many of the steps are measured. One file is kept for each processor, number of cores and
    threads, and torch version.
    """
    path = _kept_at()
    if not refresh and (held := _read(path)) is not None:
        return held
    keep_freed_blocks()
    steps = []
    for done, setting in enumerate(CALIBRATION):
        told(done, len(CALIBRATION))
        steps.append(measure(setting))
    rates = fit(steps)
    write_json(path, {"identity": _identity(), "rates": rates.to_json()})
    return rates


def steps_to_json(steps: Iterable[Measured]) -> list[dict[str, Any]]:
    """Measured steps as JSON values; of the ops what a fit reads."""
    kept = ("name", "part", "dtype", "calls", "seconds", "overhead_seconds", "bytes_read")
    return [
        {
            "name": step.name,
            "seconds": step.seconds,
            "ops": [
                {name: value for name, value in asdict(_plain(op)).items() if name in (*kept, "flops")}
                for op in step.ops
            ],
        }
        for step in steps
    ]


def steps_from_json(values: Iterable[Mapping[str, Any]]) -> list[Measured]:
    """Those that `steps_to_json` wrote."""
    rest = {"module": "", "vector_flops": 0.0, "bytes_written": 0.0}
    return [Measured(step["name"], step["seconds"], tuple(Op(**(rest | op)) for op in step["ops"])) for step in values]


def _plain(op: Op) -> Op:
    """With all FLOPs and all bytes in one figure each."""
    return replace(op, flops=op.hardware_flops, vector_flops=0.0, recomputed_flops=0.0, bytes_read=op.bytes)


def _identity() -> dict[str, Any]:
    card = machine_card()
    return {
        "processor": card["processor"],
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _kept_at() -> Path:
    key = hashlib.sha256(json.dumps(_identity(), sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / f"prices-{key}.json"


def _read(path: Path) -> FittedRates | None:
    """None where nothing whole is kept."""
    try:
        held = read_json(path)
        if held["identity"] != _identity():
            return None
        return FittedRates.from_json(held["rates"])
    except (OSError, CorruptError, KeyError, TypeError, InputError):
        return None
