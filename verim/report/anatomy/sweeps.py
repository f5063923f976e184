"""Sweeps as curves: tokens a second, step, memory and utilisation over the axis, the knee and the end of memory."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from verim.anatomy.sweep import Sample, Sweep
from verim.anatomy.sweep_terminal import HEADINGS, cells, sentences
from verim.anatomy.words import count_words, listed, share_words, size_words, time_words
from verim.report.anatomy.document import document
from verim.report.anatomy.plots import Scale, frame, label, log_scale, percent, polyline, segment, zero_scale
from verim.report.html import Markup, element, joined
from verim.report.parts import Column, panel, paragraph, section, table
from verim.runtime.files import write_text

_HEIGHT = 210
_LEAD = "A training step measured at one value after the other, all else the same; a dashed line marks the knee."


def _rate(value: float) -> str:
    return count_words(value) if value else "0"


Curve = tuple[str, str, Callable[[Sample], float]]
_FIGURES: tuple[tuple[str, Callable[[float], str], bool, tuple[Curve, ...]], ...] = (
    ("tokens a second", _rate, False, (("tokens a second", "c0", lambda s: s.tokens_per_second),)),
    (
        "seconds",
        time_words,
        True,
        (
            ("step", "c0", lambda s: s.step_seconds),
            ("backward", "c1", lambda s: s.backward_seconds),
            ("forward", "c2", lambda s: s.forward_seconds),
        ),
    ),
    ("utilisation", share_words, False, (("utilisation", "c0", lambda s: s.utilisation),)),
    (
        "memory",
        size_words,
        False,
        (
            ("predicted", "c4", lambda s: s.predicted_bytes),
            ("measured", "c3", lambda s: math.nan if s.measured_bytes is None else s.measured_bytes),
        ),
    ),
)


def sweeps_page(sweeps: Sequence[Sweep], path: Path, title: str) -> None:
    """Writes a page of sweeps alone. `title`: of what, as "mamba". Raises `SpaceError` where the disk is full."""
    found = next((sentence for each in sweeps for sentence in sentences(each)), "")
    heading = found.partition(": ")[0].removesuffix(".")
    sections = [section("Sweeps", *map(sweep_section, sweeps))]
    write_text(path, document(title, heading, _LEAD, sections))


def sweep_section(found: Sweep) -> Markup:
    """Its sentences, its curves, its table."""
    said = element("ul", *(element("li", sentence) for sentence in sentences(found)), class_="findings")
    rows = [[sample.value, *cells(sample)] for sample in found.samples]
    columns = [Column(found.axis, "text"), *(Column(name[0].upper() + name[1:]) for name in HEADINGS)]
    work = {"batch": f"batch {found.workload.batch}", "length": f"length {found.workload.length}"}
    work |= {"dtype": found.workload.precision}
    held = listed([said for axis, said in work.items() if axis != found.axis])
    heading = joined(element("h3", f"Over {found.axis}"), paragraph(f"At {held}.", quiet=True))
    figures = None
    if found.axis != "dtype" and len(found.samples) > 1:
        figures = element("div", *(_figure(found, *parts) for parts in _FIGURES), class_="quarters")
    elif found.axis == "dtype":
        figures = _bars(found)
    return panel(heading, said, figures, table(f"Sweep over {found.axis}", columns, rows))


def _figure(
    found: Sweep, title: str, written: Callable[[float], str], is_log: bool, curves: tuple[Curve, ...]
) -> Markup:
    values = [float(sample.value) for sample in found.samples]
    x = Scale(found.axis, values[0] / 1.15, values[-1] * 1.15, lambda value: f"{value:g}", is_log=True)
    heights = [curve(sample) for _, _, curve in curves for sample in found.samples]
    y = log_scale(title, heights, written) if is_log else zero_scale(title, heights, written)
    marks = []
    knee = found.knee_value
    if knee is not None and values[0] <= knee <= values[-1]:
        marks.append(segment(x, y, (knee, y.low), (knee, y.high), class_="knee"))
        marks.append(label(x, y, (knee, y.low), f"knee {knee:.3g}", 5, -6, class_="knee-name"))
    for name, colour, curve in curves:
        points = [(float(sample.value), curve(sample)) for sample in found.samples if math.isfinite(curve(sample))]
        titles = [f"{name} at {found.axis} {at:g}: {written(value)}" for at, value in points]
        marks.append(polyline(x, y, points, titles, colour))
    alternative = f"{title} over {found.axis}; the table below has the numbers."
    keys = [element("li", element("i", class_=f"swatch {colour}"), name) for name, colour, _ in curves]
    legend = element("ul", *keys, class_="legend") if len(curves) > 1 else None
    ticks = values if len(values) <= 7 else values[:: math.ceil(len(values) / 7)]
    return element("figure", frame(x, y, marks, _HEIGHT, alternative, ticks), legend)


def _bars(found: Sweep) -> Markup:
    longest = max(sample.step_seconds for sample in found.samples)
    lines = [
        joined(
            element("span", sample.value),
            element("span", element("i", style=f"width:{percent(sample.step_seconds / longest)}"), class_="bar"),
            element("span", time_words(sample.step_seconds), class_="number"),
            element("span", f"{count_words(sample.tokens_per_second)} tokens/s", class_="number quiet"),
        )
        for sample in found.samples
    ]
    return element("div", *lines, class_="bars")
