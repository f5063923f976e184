"""A plan for this machine, trained: what was predicted beside what came of it."""

import math
from pathlib import Path
from typing import Any

import torch

from verim.anatomy import Workload, adamw, record
from verim.data import Dataset
from verim.models import LanguageModel
from verim.runs import RunDirectory
from verim.scaling.budget import Budget
from verim.scaling.plan import EVALUATIONS
from verim.scaling.planning.answer import Answer
from verim.scaling.pretraining import Request, plan_run
from verim.train.pretraining import pretrain
from verim.train.trainer import Progress

_RECORDED_STEPS = 8


def trial(answer: Answer, data: Path, directory: Path, progress: Progress = lambda record: None) -> dict[str, Any]:
    """Trains the plan on the data set `data` in the run `directory`, as `verim train` does. A finished run is read.

    The result has `directory`, and for each of loss (in the law's unit), seconds and memory_bytes `predicted`,
    `achieved` and `error` = predicted / achieved − 1; for the loss, `within`: whether it fell into the interval.
    Memory is that of a step, by the allocator's records.
    """
    allocation = answer.allocation
    request = Request(
        data=data,
        budget=Budget(tokens=allocation.tokens),
        architecture=allocation.size.architecture,
        width=allocation.size.width,
        batch=allocation.recipe.batch,
        length=allocation.size.length,
        evaluations=EVALUATIONS,
    )
    pretraining = plan_run(request).pretraining
    result, _ = pretrain(pretraining, RunDirectory(directory), torch.device("cpu"), progress)
    loss = result["bits_per_byte"]
    if not answer.law.is_of_bytes:
        loss *= math.log(2) * Dataset(data, verify=False).manifest.bytes_per_token
    band = allocation.band
    return {
        "directory": str(directory),
        "bits_per_byte": result["bits_per_byte"],
        "loss": _beside(allocation.loss, loss) | {"within": band and band.low <= loss <= band.high},
        "seconds": _beside(allocation.seconds or math.nan, result["seconds"]),
        "memory_bytes": _beside(answer.memory_bytes, _step_memory(answer)),
    }


def _beside(predicted: float, achieved: float) -> dict[str, Any]:
    return {"predicted": predicted, "achieved": achieved, "error": predicted / achieved - 1}


def _step_memory(answer: Answer) -> float:
    """The most that lay in tensors in a step of the plan's model and batch, measured."""
    allocation = answer.allocation
    workload = Workload(allocation.recipe.batch, allocation.size.length)
    model = LanguageModel(allocation.size.config)
    optimiser = adamw(model)
    with record(model) as recording:
        for _ in range(_RECORDED_STEPS):
            workload.step(model, optimiser, workload.draw(model))
    memory = recording.result.memory
    return float(memory.allocator_peak_bytes or memory.peak_bytes)
