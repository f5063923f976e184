"""The roofline of a step: every layer as a dot below the machine's ceilings, alike layers under one number."""

from verim.anatomy.ledger import ABOVE, Record
from verim.anatomy.roofline import Point, alike_points, layer_points
from verim.anatomy.words import count_words, listed, share_words, size_words, time_words
from verim.report.anatomy.plots import Scale, dot, frame, label, log_scale, segment
from verim.report.html import Markup, element, joined
from verim.report.parts import Column, table

_NUMBERED = 9
_DOTS = 1000
_ROWS = 60
_HEIGHT = 380
_NEAR = (0.04, 0.05)  # shares of the axes within which two numbers would cover each other
_EDGE = 0.85  # of the width: beyond it numbers stand left of their points
_BOUNDS = {"compute": "arithmetic", "memory": "memory", "launch": "launches"}


def roofline(record: Record) -> Markup:
    """The figure, and below it the layers with their numbers."""
    layers, alike = layer_points(record), alike_points(record)
    placed = [point for point in layers if point.flops][:_DOTS]
    if not placed:
        return element("p", "No layer computes anything.", class_="quiet")
    ceilings = record.ceilings
    peak = max(ceilings.matmul.values())
    memory, cache = ceilings.ladder[-1][1], max(rate for _, rate in ceilings.ladder)
    lowest = min(point.intensity for point in placed) / 3  # left of the dots there is room for names
    x = log_scale(
        "FLOPs a byte", [lowest, *(point.intensity for point in placed), 0.5 * peak / cache, 2 * peak / memory], _plain
    )
    y = log_scale("FLOP/s", [*(point.rate for point in placed), peak], lambda value: count_words(value))
    roofs = [
        _slope(x, y, memory, peak, f"memory, {size_words(memory)}/s", 14),
        _slope(x, y, cache, peak, f"cache, {size_words(cache)}/s", -6),
        *(_peak(x, y, rate, name, cache) for name, rate in ceilings.matmul.items() if _is_used(record, name)),
    ]
    dots = [
        dot(x, y, (point.intensity, point.rate), _said(point), 3.5, class_=f"layer {point.bound}") for point in placed
    ]
    numbered = [point for point in alike if point.flops][:_NUMBERED]
    alternative = f"{len(placed)} layers by arithmetic intensity and FLOP/s, below the ceilings of the machine."
    figure = frame(x, y, [*dots, *roofs, *_numbers(x, y, numbered)], _HEIGHT, alternative)
    return joined(element("figure", figure, _caption(layers, placed)), _above(layers), _table(record, alike))


def _above(layers: list[Point]) -> Markup | None:
    """Points that cannot be are told."""
    names = [f"{point.name} ({share_words(point.fraction)})" for point in layers if point.fraction > ABOVE]
    if not names:
        return None
    text = f"Faster than this machine can be, by a count, a ceiling or the clock: {listed(names)}."
    return element("p", text, class_="above")


def _caption(layers: list[Point], placed: list[Point]) -> Markup:
    still = len(layers) - len(placed)
    text = (
        f"Each of {len(placed)} layers is a dot: the higher, the faster; under a slanted line memory is the limit, "
        "under a flat one arithmetic. A dot far below both wastes time on neither: small sizes, a slow kernel, or "
        "functions that cost more than one FLOP."
    )
    if still:
        text += f" {still} more layers only move bytes, or are too many to draw."
    return element("figcaption", text)


def _table(record: Record, alike: list[Point]) -> Markup:
    numbers = {point.name: index for index, point in enumerate([p for p in alike if p.flops][:_NUMBERED], start=1)}
    rows = [
        [
            joined(element("b", numbers.get(point.name, "")), f" {point.name} ", element("small", point.kind)),
            time_words(point.seconds),
            share_words(point.seconds / record.step_seconds),
            f"{point.intensity:.3g}",
            count_words(point.rate),
            count_words(point.ceiling),
            share_words(point.fraction) if point.flops else "–",
            _BOUNDS[point.bound],
        ]
        for point in alike[:_ROWS]
    ]
    headings = ("Time", "Of the step", "FLOPs a byte", "FLOP/s", "Ceiling", "Reached")
    columns = [Column("Layer, alike ones together", "text"), *map(Column, headings), Column("Bound by", "text")]
    return table("Layers on the roofline", columns, rows)


def _said(point: Point) -> str:
    return (
        f"{point.name} ({point.kind}): {time_words(point.seconds)}, {point.intensity:.3g} FLOPs a byte, "
        f"{count_words(point.rate)} FLOP/s, {share_words(point.fraction)} of its ceiling; bound by "
        f"{_BOUNDS[point.bound]}"
    )


def _is_used(record: Record, dtype: str) -> bool:
    return any(op.dtype == dtype and op.flops for op in record.ops)


def _slope(x: Scale, y: Scale, bandwidth: float, peak: float, text: str, dy: float) -> Markup:
    """A slanted roof, from the left or the lower edge to the peak."""
    begin = max(x.low, y.low / bandwidth)
    line = segment(x, y, (begin, begin * bandwidth), (peak / bandwidth, peak), class_="roof")
    return joined(line, label(x, y, (begin, begin * bandwidth), text, 8, dy - 8, class_="roof-name"))


def _peak(x: Scale, y: Scale, rate: float, name: str, bandwidth: float) -> Markup:
    line = segment(x, y, (rate / bandwidth, rate), (x.high, rate), class_="roof")
    text = f"{name}, {count_words(rate)}FLOP/s"
    return joined(line, label(x, y, (x.high, rate), text, 0, -6, class_="roof-name", text_anchor="end"))


def _numbers(x: Scale, y: Scale, points: list[Point]) -> list[Markup]:
    """A ring around each point, and its number beside it: one text for those whose numbers would cover each other."""
    together: list[tuple[Point, list[str]]] = []
    for index, point in enumerate(points, start=1):
        near = next((numbers for first, numbers in together if _is_near(x, y, first, point)), None)
        if near is None:
            together.append((point, [str(index)]))
        else:
            near.append(str(index))
    rings = [dot(x, y, (point.intensity, point.rate), _said(point), 7, class_="ring") for point in points]
    texts = []
    for first, numbers in together:
        at_the_edge = x.place(first.intensity) > _EDGE
        side, anchor = (-9, "end") if at_the_edge else (9, "start")
        place, text = (first.intensity, first.rate), ", ".join(numbers)
        texts.append(label(x, y, place, text, side, -7, class_="layer-number", text_anchor=anchor))
    return rings + texts


def _is_near(x: Scale, y: Scale, one: Point, other: Point) -> bool:
    across = abs(x.place(one.intensity) - x.place(other.intensity))
    return across < _NEAR[0] and abs(y.place(one.rate) - y.place(other.rate)) < _NEAR[1]


def _plain(value: float) -> str:
    return f"{value:g}"
