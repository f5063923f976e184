"""A sweep on a terminal: its samples as a table, and what they say in sentences."""

import itertools
import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verim.anatomy.knee import EFFICIENT, FULL, Knee
from verim.anatomy.sweep import Sample, Sweep
from verim.anatomy.words import count_words, share_words, size_words, time_words

HEADINGS = (
    "step",
    "tokens/s",
    "of peak",
    "forward",
    "backward",
    "time ×",
    "FLOPs ×",
    "FLOPs",
    "memory",
    "predicted",
)


_WIDE = 110  # columns of a terminal that holds all of them
_LEFT_OUT = ("FLOPs", "predicted")  # where it is narrower
_NO_CURVE = 0.25  # points that lie off by more on average have no knee worth a name
_NEAR = 10  # times the last value: further on, nothing is extrapolated


def print_sweep(found: Sweep, console: Console) -> None:
    """Prints it all, as plain text where `console` is no terminal."""
    is_wide = console.width >= _WIDE
    gap = 2 if is_wide else 1
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, gap), collapse_padding=True)
    shown = [is_wide or name not in _LEFT_OUT for name in HEADINGS]
    for name in (found.axis, *itertools.compress(HEADINGS, shown)):
        table.add_column(name, justify="right", no_wrap=True)
    for sample in found.samples:
        table.add_row(str(sample.value), *itertools.compress(cells(sample), shown))
    console.print(table)
    console.print()
    for sentence in sentences(found):
        console.print(Text(sentence), soft_wrap=True)


def cells(sample: Sample) -> tuple[str, ...]:
    """A sample under `HEADINGS`: "time ×" and "FLOPs ×" are the backward pass's over the forward pass's."""
    return (
        time_words(sample.step_seconds),
        count_words(sample.tokens_per_second),
        share_words(sample.utilisation),
        time_words(sample.forward_seconds),
        time_words(sample.backward_seconds),
        f"{sample.backward_ratio:.2f}",
        f"{sample.backward_flops_ratio:.2f}",
        count_words(sample.flops),
        "–" if sample.measured_bytes is None else size_words(sample.measured_bytes),
        size_words(sample.predicted_bytes),
    )


def sentences(found: Sweep) -> list[str]:
    """What a builder learns from it."""
    said = [_knee(found), _types(found), _backward(found), _memory(found)]
    said += [
        f"{found.axis} {value} was not run: a step needs {size_words(size)}, and {size_words(found.available_bytes)} "
        "is free."
        for value, size in found.refused
    ]
    return [sentence for sentence in said if sentence]


def _knee(found: Sweep) -> str:
    knee, value = found.knee, found.knee_value
    if knee is None or value is None:
        return ""
    off = f"The curve lies {share_words(knee.error)} off the measured points on average."
    if knee.error > _NO_CURVE:
        return f"No knee can be named: the seconds follow no such curve. {off}"
    if found.axis == "threads":
        return f"{_threads(found, knee, value)} {off}"
    first, last = found.samples[0].value, found.samples[-1].value
    busy = f"{share_words(FULL)} of the rate that the machine tends to"
    if knee.side == "before":
        said = f"The machine is busy from {found.axis} {first} on: {busy} is reached there already."
    elif knee.side == "beyond":
        there = f", about {value:.3g}" if value <= _NEAR * int(last) else ""
        said = f"The machine is still idle in part at {found.axis} {last}: {busy} lies beyond{there}."
    else:
        said = f"The machine stops being idle at {found.axis} {value:.3g}: {busy} is reached there."
    return f"{said} A step costs {time_words(knee.fixed_seconds)} whatever the {found.axis}. {off}"


def _threads(found: Sweep, knee: Knee, value: float) -> str:
    if not math.isfinite(value) or value > _NEAR * int(found.samples[-1].value):
        return "Every thread more does about as much as the first: no knee among these."
    where = ", which is extrapolated" if knee.side == "beyond" else ""
    limit = 1 + knee.seconds_each / knee.fixed_seconds
    return (
        f"Up to {value:.3g} threads each does at least {share_words(EFFICIENT)} of what one alone does{where}; all "
        f"the threads there could be make a step at most {limit:.3g} times as fast."
    )


def _types(found: Sweep) -> str:
    if found.axis != "dtype" or len(found.samples) < 2:
        return ""
    best = min(found.samples, key=lambda sample: sample.step_seconds)
    others = ", ".join(
        f"{sample.step_seconds / best.step_seconds:.2f} times as fast as {sample.value}"
        for sample in found.samples
        if sample is not best
    )
    return f"{best.value} is the fastest here: {others}."


def _backward(found: Sweep) -> str:
    if not found.samples:
        return ""
    times = [sample.backward_ratio for sample in found.samples]
    flops = [sample.backward_flops_ratio for sample in found.samples]
    return (
        f"The backward pass takes {_range(times)} times as long as the forward pass, for {_range(flops)} times its "
        "FLOPs (products alone: 2)."
    )


def _memory(found: Sweep) -> str:
    if found.largest is None:
        return ""
    free = f"{size_words(found.available_bytes)} that is free"
    if not found.is_largest_known:
        return f"Memory does not end before {found.axis} {found.largest}: the {free} holds that too, by prediction."
    if not found.largest:
        return f"No {found.axis} fits into the {free}, by prediction."
    return f"Memory ends at {found.axis} {found.largest}: the largest that fits into the {free}, by prediction."


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"
