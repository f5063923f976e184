"""The step as a flame: its parts in order, below each the modules that run in it, below these their ops."""

from collections.abc import Iterator
from dataclasses import dataclass

from verim.anatomy.ledger import Module, Op, Record
from verim.anatomy.roofline import point_of
from verim.anatomy.words import count_words, share_words, size_words, time_words
from verim.report.anatomy.plots import percent
from verim.report.html import Markup, element, joined

_ROW = 22  # pixels
_MOST = 1000
"""So many boxes at most, the widest: a page stays far below 1 MB."""
_NARROWEST = 0.0004  # of the step
_WRITTEN = 0.012  # narrower boxes have no text
_BOUNDS = {"compute": "arithmetic", "memory": "memory", "launch": "launches and Python between ops"}


@dataclass(frozen=True)
class Box:
    """A part, a module in a part, or the calls of an op in a module; `begin` and `seconds` from the step's begin."""

    name: str
    detail: str
    colour: str
    row: int
    begin: float
    seconds: float


def flame(record: Record) -> Markup:
    """The figure, with its legend."""
    whole = max(record.step_seconds, sum(part.seconds for part in record.parts))
    boxes = sorted(boxes_of(record), key=lambda box: -box.seconds)
    shown = [box for box in boxes if box.seconds >= _NARROWEST * whole][:_MOST]
    rows = max((box.row for box in shown), default=0) + 1
    marks = [_drawn(box, whole) for box in sorted(shown, key=lambda box: (box.row, box.begin))]
    alternative = "The time of the step by part, module and op, as nested boxes; the tables below have the numbers."
    drawn = element("svg", *marks, width="100%", height=str(rows * _ROW), role="img", aria_label=alternative)
    keys = [
        element("li", element("i", class_=f"swatch {bound}"), f"bound by {name}") for bound, name in _BOUNDS.items()
    ]
    return joined(element("ul", *keys, class_="legend"), element("div", drawn, class_="flame"))


def boxes_of(record: Record) -> Iterator[Box]:
    """All boxes: every box lies within one of the row above it."""
    own: dict[tuple[str, str], list[Op]] = {}
    names = {fact.name for fact in record.facts}
    for op in record.ops:
        own.setdefault((op.part, op.module if op.module in names else ""), []).append(op)
    root, begin = record.modules(), 0.0
    for part in record.parts:
        detail = f"{time_words(part.seconds)}, {share_words(part.seconds / record.step_seconds)} of the step"
        yield Box(part.name, detail, "part", 0, begin, part.seconds)
        yield from _below(record, own, root, part.name, 1, begin)
        begin += part.seconds


def _below(
    record: Record, own: dict[tuple[str, str], list[Op]], module: Module, part: str, row: int, begin: float
) -> Iterator[Box]:
    """The children of a module in a part, then its own ops by name."""
    for child in module.children:
        seconds = child.seconds.get(part, 0.0)
        if seconds:
            ops = [op for below in child.walk() for op in own.get((part, below.name), [])]
            title = f"{child.name} ({child.kind}), {part}: {_figures(record, ops, seconds)}"
            yield Box(
                child.name.rpartition(".")[2], title, point_of("", "", ops, record.ceilings).bound, row, begin, seconds
            )
            yield from _below(record, own, child, part, row + 1, begin)
            begin += seconds
    named: dict[str, list[Op]] = {}
    for op in own.get((part, module.name), []):
        named.setdefault(op.name, []).append(op)
    for name, ops in sorted(named.items(), key=lambda item: -sum(op.total_seconds for op in item[1])):
        seconds = sum(op.total_seconds for op in ops)
        bound = point_of("", "", ops, record.ceilings).bound
        title = f"{name} of {module.name or 'the model'}, {part}: {_figures(record, ops, seconds)}"
        yield Box(name.removeprefix("aten.").removeprefix("verim."), title, f"op {bound}", row, begin, seconds)
        begin += seconds


def _figures(record: Record, ops: list[Op], seconds: float) -> str:
    point = point_of("", "", ops, record.ceilings)
    calls = sum(op.calls for op in ops)
    return (
        f"{time_words(seconds)}, {share_words(seconds / record.step_seconds)} of the step; {count_words(point.flops)} "
        f"FLOPs, {size_words(point.bytes)}, {calls:.4g} ops, {share_words(point.fraction)} of their ceiling; bound by "
        f"{_BOUNDS[point.bound]}"
    )


def _drawn(box: Box, whole: float) -> Markup:
    x, width, y = percent(box.begin / whole), percent(box.seconds / whole), str(box.row * _ROW)
    parts = [element("title", f"{box.name}: {box.detail}" if box.colour == "part" else box.detail)]
    parts.append(element("rect", x=x, y=y, width=width, height=str(_ROW - 1)))
    if box.seconds >= _WRITTEN * whole:
        text = element("text", box.name, x="5", y=str(_ROW - 7))
        parts.append(element("svg", text, x=x, y=y, width=width, height=str(_ROW - 1)))
    return element("g", *parts, class_=box.colour)
