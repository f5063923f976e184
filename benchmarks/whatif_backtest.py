"""Back-test of `verim whatif` on this machine: steps predicted without running, then run.

    python benchmarks/whatif_backtest.py calibrate 0/6 FOLDER    # a sixth of the steps that prices are fitted to
    python benchmarks/whatif_backtest.py run 0/3 FOLDER          # a third of those that are predicted, others
    python benchmarks/whatif_backtest.py report FOLDER docs/results/whatif.md

Measuring goes in slices so that a shared machine is not held for long; every slice is one file in FOLDER. Settings
take turns, a few steps each time, and a setting's time is the mean of the middle half of its steps.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from verim.anatomy.machine import machine_card
from verim.anatomy.whatif.calibration import (
    CALIBRATION,
    FAMILIES,
    Setting,
    measure,
    steps_from_json,
    steps_to_json,
)
from verim.anatomy.whatif.fitted import FittedRates, fit
from verim.anatomy.whatif.work import step_of
from verim.anatomy.workload import Workload, adamw, model_config
from verim.models import LanguageModel
from verim.runtime.allocator import keep_freed_blocks

SHAPES = ((96, 8, 128), (128, 2, 512), (192, 4, 64), (256, 4, 256))
HELD_OUT = tuple(
    Setting(family, *shape) for family in FAMILIES for shape in SHAPES if family != "rwkv7" or shape[0] % 64 == 0
)
"""RWKV-7's heads have 64 channels."""
UNSEEN = (Setting("mor", 192, 4, 128), Setting("min_lstm", 128, 8, 128), Setting("s4d", 128, 4, 128))
"""Of families that no price was fitted to."""
GOAL = 0.10
TURNS, SECONDS = 3, 0.15
"""Each setting's turns, and about how long one lasts."""


def main() -> None:
    verb, *rest = sys.argv[1:]
    keep_freed_blocks()
    if verb == "report":
        Path(rest[1]).write_text(report(Path(rest[0])))
        return
    part, parts = map(int, rest[0].split("/"))
    folder = Path(rest[1])
    folder.mkdir(parents=True, exist_ok=True)
    if verb == "calibrate":
        steps = [measure(setting) for setting in CALIBRATION[part::parts]]
        values = steps_to_json(steps)
    else:
        seconds = run((HELD_OUT + UNSEEN)[part::parts])
        values = [{"setting": vars(setting), "seconds": time_} for setting, time_ in seconds.items()]
    (folder / f"{verb}-{part}-of-{parts}.json").write_text(json.dumps(values))


def run(settings: tuple[Setting, ...]) -> dict[Setting, float]:
    """The seconds of each setting's step, in turns."""
    steps = {}
    for setting in settings:
        model = LanguageModel(model_config(setting.model, setting.width))
        steps[setting] = (Workload(setting.batch, setting.length), model, adamw(model))
    times: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for _turn in range(TURNS):
        for setting, (workload, model, optimiser) in steps.items():
            workload.step(model, optimiser, workload.draw(model))  # its memory is warm again
            spent, count = 0.0, 0
            while spent < SECONDS or count < 4:
                began = time.perf_counter()
                workload.step(model, optimiser, workload.draw(model))
                times[setting].append(time.perf_counter() - began)
                spent, count = spent + times[setting][-1], count + 1
    return {setting: middle(found) for setting, found in times.items()}


def middle(times: list[float]) -> float:
    """The mean of the middle half."""
    ordered, quarter = sorted(times), len(times) // 4
    return statistics.fmean(ordered[quarter : len(ordered) - quarter])


def report(folder: Path) -> str:
    """The table of predicted against measured, and what the errors come to."""
    calibration = [step for path in sorted(folder.glob("calibrate-*.json")) for step in json.loads(path.read_text())]
    rates = fit(steps_from_json(calibration))
    measured = {
        Setting(**row["setting"]): row["seconds"]
        for path in sorted(folder.glob("run-*.json"))
        for row in json.loads(path.read_text())
    }
    predicted = {setting: predict(setting, rates) for setting in measured}
    errors = {setting: predicted[setting] / seconds - 1 for setting, seconds in measured.items()}
    known = [abs(error) for setting, error in errors.items() if setting in HELD_OUT]
    unseen = [abs(error) for setting, error in errors.items() if setting in UNSEEN]
    inside = sum(error <= rates.error for error in known)
    card = machine_card()
    lines = [
        "# What-if, back-tested",
        "",
        f"{card['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}. "
        f"Prices of ops were fitted to {rates.steps} recorded steps of {len(FAMILIES)} families; "
        f"the {len(known)} steps below are others, predicted "
        "from shapes alone and then run. Written by `benchmarks/whatif_backtest.py`, whose head says how.",
        "",
        f"- Mean absolute error: **{statistics.fmean(known):.1%}**, median {statistics.median(known):.1%}, largest "
        f"{max(known):.1%}.",
        f"- Band: nine of ten calibration steps were predicted within {rates.error:.0%} by a fit to the others; "
        f"{inside} of {len(known)} steps below are inside it.",
    ]
    verdict = "met" if statistics.fmean(known) <= GOAL else "missed"
    lines.append(f"- The goal is a mean of {GOAL:.0%}: **{verdict}**. The machine was shared while this was measured.")
    if unseen:
        lines.append(f"- Families without a step in the calibration: mean {statistics.fmean(unseen):.1%} (last rows).")
    lines += ["", "| step | predicted ms | measured ms | error |", "|---|---|---|---|"]
    for setting in sorted(measured, key=lambda setting: (setting in UNSEEN, setting.name)):
        said, took = predicted[setting] * 1e3, measured[setting] * 1e3
        lines.append(f"| {setting.name} | {said:.1f} | {took:.1f} | {errors[setting]:+.1%} |")
    return "\n".join(lines) + "\n"


def predict(setting: Setting, rates: FittedRates) -> float:
    ops, _ = step_of(model_config(setting.model, setting.width), Workload(setting.batch, setting.length))
    return rates.step_seconds(ops)


if __name__ == "__main__":
    main()
