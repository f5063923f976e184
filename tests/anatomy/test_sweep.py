"""Sweeps of tiny models: what is measured is consistent, what does not fit is not run; sentences on made-up samples."""

import json
import math
from dataclasses import replace
from functools import partial
from io import StringIO

import pytest
import torch
from rich.console import Console

from verim.anatomy import Ceilings, Workload, adamw, model_config, predict_memory
from verim.anatomy.knee import saturation_knee, threads_knee
from verim.anatomy.sweep import Axis, Sample, Sweep, check_values, default_values, sweep
from verim.anatomy.sweep_terminal import HEADINGS, cells, print_sweep, sentences
from verim.errors import InputError
from verim.models import LanguageModel

CEILINGS = Ceilings("cpu", 1, {"float32": 1e15}, ((2**14, 1e15), (2**26, 1e15)), 1e-6)
TINY = Workload(2, 8)
small = partial(model_config, "transformer")


def run(axis: Axis, *values: int | str, available_bytes: float = math.inf) -> Sweep:
    return sweep(small, 16, axis, values, TINY, 5, available_bytes, CEILINGS)


def test_batches_are_measured_one_after_the_other() -> None:
    told: list[Sample] = []
    found = sweep(small, 16, "batch", (1, 2, 4), TINY, 5, 1e8, CEILINGS, told.append)
    assert told == list(found.samples) and [sample.value for sample in told] == [1, 2, 4]
    for sample in told:
        assert sample.tokens == 8 * int(sample.value)
        assert sample.step_seconds > 0 and sample.forward_seconds > 0 and sample.backward_seconds > 0
        assert sample.tokens_per_second == sample.tokens / sample.step_seconds
        assert sample.flops == pytest.approx(int(sample.value) * told[0].flops)
        assert 1.5 < sample.backward_flops_ratio <= 2
        assert sample.predicted_bytes == predict_memory(small(16), replace(TINY, batch=int(sample.value))).peak_bytes
    assert found.knee is not None and found.knee_value is not None and not found.refused
    assert found.largest == 64 * 4 and not found.is_largest_known  # looked for no further
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["samples"][1]["value"] == 2


def test_what_does_not_fit_is_told_and_not_run() -> None:
    small_step, large_step = (predict_memory(small(16), replace(TINY, batch=batch)).peak_bytes for batch in (2, 64))
    found = run("batch", 1, 2, 64, available_bytes=(small_step + large_step) / 2)
    assert [sample.value for sample in found.samples] == [1, 2] and found.knee is None
    assert found.refused == ((64, large_step),)
    assert found.largest is not None and 2 < found.largest < 64 and found.is_largest_known
    assert predict_memory(small(16), replace(TINY, batch=found.largest)).peak_bytes <= found.available_bytes
    said = " ".join(sentences(found))
    assert f"Memory ends at batch {found.largest}" in said and "batch 64 was not run" in said


@pytest.mark.parametrize(
    ("axis", "values"), [("length", (8, 16, 24)), ("width", (16, 32, 48)), ("threads", (1, 2))], ids=str
)
def test_an_axis_changes_what_it_names(axis: Axis, values: tuple[int, ...]) -> None:
    before = torch.get_num_threads()
    found = run(axis, *values)
    assert torch.get_num_threads() == before
    flops = [sample.flops for sample in found.samples]
    assert flops == sorted(flops) and (len(set(flops)) == 1) is (axis == "threads")
    assert (found.samples[0].tokens != found.samples[-1].tokens) is (axis == "length")
    assert found.knee is not None and found.largest is None  # how much memory there is was not said


def test_types_have_no_knee_and_equal_flops() -> None:
    found = run("dtype", "bfloat16", "float32", available_bytes=1e9)
    assert found.knee is None and found.largest is None
    assert [sample.value for sample in found.samples] == ["bfloat16", "float32"]
    assert found.samples[0].flops == found.samples[1].flops
    assert any("is the fastest here" in sentence for sentence in sentences(found))


def test_a_step_in_float16_runs() -> None:
    model = LanguageModel(small(16))
    workload = Workload(2, 8, "float16")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    workload.step(model, adamw(model), workload.draw(model))
    after = list(model.parameters())
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def made_up(axis: Axis, values: tuple[int, ...], seconds: list[float]) -> Sweep:
    samples = tuple(
        Sample(value, 8, time, 0.25 * time, 0.5 * time, 100.0, 200.0, 0.1, 1000, None)
        for value, time in zip(values, seconds, strict=True)
    )
    knee = threads_knee(values, seconds) if axis == "threads" else saturation_knee(values, seconds)
    return Sweep(axis, samples, TINY, math.inf, knee=knee, knee_value=knee.at)


BATCHES = (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("axis", "values", "seconds", "words"),
    [
        ("batch", BATCHES, [2 + n for n in BATCHES], "stops being idle at batch 8: 80 %"),
        ("batch", BATCHES, [float(n) for n in BATCHES], "busy from batch 1 on"),
        ("batch", BATCHES, [16 + n for n in BATCHES], "idle in part at batch 32: 80 % of the rate that the machine "
         "tends to lies beyond, about 64"),
        ("batch", BATCHES, [1.0 for _ in BATCHES], "tends to lies beyond. A step costs 1 s"),
        ("batch", BATCHES, [1.0, 9.0, 1.0, 9.0, 1.0, 9.0], "No knee can be named"),
        ("threads", (1, 2, 4, 8), [1 + 3 / p for p in (1, 2, 4, 8)], "Up to 5 threads each does at least 50 %"),
        ("threads", (1, 2, 4), [4.0, 2.0, 1.0], "Every thread more does about as much"),
        ("threads", (1, 2), [1.0, 9.0], "No knee can be named"),
    ],
    ids=["inside", "linear", "beyond", "flat", "wild", "threads", "perfect", "slower"],
)  # fmt: skip
def test_the_knee_is_said(axis: Axis, values: tuple[int, ...], seconds: list[float], words: str) -> None:
    found = made_up(axis, values, seconds)
    assert words in sentences(found)[0]
    assert "takes 2 times as long as the forward pass, for 2 times its FLOPs" in " ".join(sentences(found))


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_has_a_row_for_every_sample(width: int) -> None:
    found = made_up("batch", BATCHES, [2.0 + n for n in BATCHES])
    file = StringIO()
    print_sweep(found, Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    shown = [heading for heading in HEADINGS if width == 200 or heading not in ("FLOPs", "predicted")]
    assert lines[0].split() == ["batch", *" ".join(shown).split()] and "…" not in file.getvalue()
    for line, sample in zip(lines[1:], found.samples, strict=False):
        row = dict(zip(HEADINGS, cells(sample), strict=True))
        assert line.split() == [str(sample.value), *" ".join(row[heading] for heading in shown).split()]
        assert len(line) <= width


@pytest.mark.parametrize(
    ("axis", "values", "message"),
    [
        ("depth", (1,), "expected one of batch"),
        ("batch", (), "got none"),
        ("batch", (2, 1), "ascending"),
        ("batch", (0, 1), "from 1 on"),
        ("length", ("many",), "whole numbers"),
        ("dtype", ("int8",), "expected some of float32"),
        ("dtype", ("float32", "float32"), "each dtype once"),
    ],
    ids=["axis", "none", "order", "zero", "word", "type", "twice"],
)
def test_values_that_cannot_be_are_refused(axis: str, values: tuple[int | str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_values(axis, values)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(InputError, match="steps: got 4"):
        sweep(small, 16, "batch", (1,), TINY, 4)


@pytest.mark.parametrize("axis", ["batch", "length", "width", "dtype", "threads"])
def test_every_axis_has_values_of_its_own(axis: Axis) -> None:
    assert check_values(axis, default_values(axis)) == default_values(axis)
