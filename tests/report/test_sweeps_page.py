"""The page of sweeps: their sentences, curves and tables, whole in one file."""

import re
from pathlib import Path

import pytest

from verim.anatomy import Workload
from verim.anatomy.knee import saturation_knee
from verim.anatomy.sweep import Sample, Sweep
from verim.anatomy.sweep_terminal import cells, sentences
from verim.report.anatomy import sweeps_page

BATCHES = (1, 2, 4, 8, 16, 32)


def over_batches(fixed: float) -> Sweep:
    samples = tuple(
        Sample(n, 8 * n, fixed + n, 0.25 * n, 0.5 * n, 100.0 * n, 200.0 * n, 0.1, 1000 * n, None) for n in BATCHES
    )
    knee = saturation_knee(BATCHES, [sample.step_seconds for sample in samples])
    return Sweep("batch", samples, Workload(), 1e9, ((64, 2 * 10**9),), knee, knee.at)


def over_types() -> Sweep:
    samples = tuple(
        Sample(name, 8, seconds, 0.25, 0.5, 100.0, 200.0, 0.1, 1000, 1100)
        for name, seconds in (("float32", 2.0), ("bfloat16", 1.0))
    )
    return Sweep("dtype", samples, Workload(), 1e9)


def test_the_page_has_what_the_sweeps_say(tmp_path: Path) -> None:
    sweeps = (over_batches(2.0), over_types())
    sweeps_page(sweeps, tmp_path / "page.html", "a <b>model</b>")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(text) < 1e6 and "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert "<h1>The machine stops being idle at batch 8</h1>" in text and "a &lt;b&gt;model" in text
    for found in sweeps:
        assert all(sentence in text for sentence in sentences(found))
        assert all(f">{cell}<" in text for sample in found.samples for cell in cells(sample))
    assert text.count("knee 8<") == 4  # in each of the figures over batches
    assert all(f"step at batch {batch}: " in text for batch in BATCHES)
    assert "batch 64 was not run" in text and "nan" not in text
    places = re.findall(r' (?:x|y|cx|cy|x1|x2|y1|y2)="(-?[\d.]+)%"', text)
    assert places and all(-1e-6 <= float(place) <= 100.0 + 1e-6 for place in places)


@pytest.mark.parametrize("fixed", [0.0, 1e3], ids=["before", "beyond"])
def test_a_knee_outside_what_was_measured_is_not_drawn(fixed: float, tmp_path: Path) -> None:
    sweeps_page([over_batches(fixed)], tmp_path / "page.html", "a model")
    assert 'class="knee"' not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_two_values_have_curves_and_no_knee(tmp_path: Path) -> None:
    two = Sweep("batch", over_batches(2.0).samples[:2], Workload(), 1e9)
    sweeps_page([two], tmp_path / "page.html", "a model")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 4 and 'class="knee"' not in text


def test_one_value_makes_a_page_without_curves(tmp_path: Path) -> None:
    whole = over_batches(2.0)
    one = Sweep("batch", whole.samples[:1], Workload(), 1e9)
    sweeps_page([one], tmp_path / "page.html", "a model")
    assert "<svg" not in (tmp_path / "page.html").read_text(encoding="utf-8")
