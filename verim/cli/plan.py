"""`verim plan`: what to train within a budget, on which devices and how, and what to expect of it."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from verim.cli.training_lines import TrainingLines
from verim.data import Dataset
from verim.errors import InputError
from verim.models import ARCHITECTURES
from verim.report.plan_tables import print_plan, print_trial
from verim.runtime.allocator import keep_freed_blocks
from verim.scaling.planning import PlanRequest, plan, trial
from verim.scaling.planning.request import LAW, THIS
from verim.scaling.published import LAWS


@dataclass(frozen=True)
class PlanCommand:
    """What to train within a budget: how large a model on how many tokens, what loss to expect of it by a scaling law,
    and how to lay it over the devices so that it fits and is fastest.

    The budget is one of --hours, --minutes, --flops and --params. Without --device and --this-machine it is planned for
    8 H100. With --run it is trained on this machine, and what was predicted is set beside what came of it.
    """

    hours: float | None = None
    """The budget: hours on the devices."""
    minutes: float | None = None
    """The budget: minutes on the devices."""
    flops: float | None = None
    """The budget: training FLOPs, forward and backward."""
    params: float | None = None
    """The budget: parameters, as the law counts them, on as many tokens as they are compute-optimal for."""
    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which device: a name of the table (h100, a100, ...)."""
    this_machine: bool = False
    """Plan for this machine, measured."""
    count: int | None = None
    """How many devices, in machines of 8."""
    law: Annotated[str, tyro.conf.arg(metavar="|".join(LAWS) + "|STUDY-DIR")] = LAW
    """Which scaling law: a published one, or that of a study of your text, by its directory."""
    inference_tokens: float | None = None
    """How many tokens the model will be asked for over its life: the size that is then cheapest is said beside."""
    architecture: Annotated[str, tyro.conf.arg(metavar="|".join(ARCHITECTURES))] = "transformer"
    """Which kind of model."""
    length: int | None = None
    """Tokens a sequence (2048; 128 on this machine)."""
    vocab: int | None = None
    """Tokens that it knows (32 000; 256, bytes, on this machine)."""
    price: float | None = None
    """Of an hour of one device, in your money: then the cost is said."""
    data: Annotated[Path | None, tyro.conf.arg(name="run", metavar="DATA")] = None
    """Train the plan on this data set of `verim data build`, and report what was predicted against what came."""
    out: Path | None = None
    """Directory of that run (runs/DATE-TIME where not given)."""
    json: bool = False
    """Print the whole plan as JSON as the last line."""

    def run(self) -> None:
        """Plans, prints; trains where that is asked."""
        keep_freed_blocks()
        device, vocab = self._device(), self._vocab_of_data()
        console = Console(stderr=True)
        request = PlanRequest(
            hours=self.hours,
            minutes=self.minutes,
            flops=self.flops,
            parameters=self.params,
            device=device,
            count=self.count,
            law=self.law,
            inference_tokens=self.inference_tokens,
            architecture=self.architecture,
            length=self.length,
            vocab=vocab,
            price=self.price,
        )
        if request.is_here:
            console.print("measuring this machine", style="dim")
        answer = plan(request)
        values = answer.to_json()
        print_plan(values, Console())
        if self.data is not None:
            directory = self.out or Path("runs") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
            with TrainingLines(console, directory, values["steps"]) as lines:
                values["run"] = trial(answer, self.data, directory, lines.step)
            print_trial(values, Console())
        if self.json:
            print(json.dumps(values, allow_nan=False))

    def _device(self) -> str | None:
        if self.this_machine and self.device is not None:
            raise InputError(f"device: got {self.device} with --this-machine; give one of them")
        if self.data is not None and not self.this_machine:
            raise InputError("run: got data to train on without --this-machine, which is where it would train")
        return THIS if self.this_machine else self.device

    def _vocab_of_data(self) -> int | None:
        """That of the data set to train on, where there is one."""
        if self.data is None:
            if self.out is not None:
                raise InputError(f"out: got {self.out} without --run, which alone writes anything")
            return self.vocab
        vocab = Dataset(self.data, verify=False).vocab
        if self.vocab not in (None, vocab):
            raise InputError(f"vocab: got {self.vocab}, but {self.data} has one of {vocab}: leave it out")
        return vocab
