"""The memory of a step as a picture: an SVG of stacked categories over the step, a few tens of kilobytes."""

import html
from collections.abc import Callable, Sequence
from itertools import accumulate

from verim.anatomy.memory import Memory
from verim.anatomy.words import size_words

Scale = Callable[[float], float]
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 900, 360, 64, 28, 40, 150
_COLOURS = {
    "parameters": "#4c6a92",
    "optimiser": "#7a9cc6",
    "gradients": "#c0695a",
    "activations": "#e0a458",
    "temporary": "#9aa05b",
    "caches": "#8c7aa9",
    "inputs": "#999999",
}


def memory_picture(memory: Memory) -> str:
    """Bytes over the step, stacked by category; the parts of the step below, the highest point marked.

    A page that holds it may set its colours, as `--panel`, `--ink` and `--rule`.
    """
    timeline = memory.timeline
    names = [name for name in _COLOURS if name in timeline.bytes]
    seconds, totals = timeline.seconds, timeline.totals()
    end, top = max(seconds[-1], 1e-12) if seconds else 1.0, max(totals, default=1) or 1
    predicted = memory.source == "predicted"

    def x(second: float) -> float:
        return round(_LEFT + second / end * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(size: float) -> float:
        return round(_TOP + (1 - size / top) * (_HEIGHT - _TOP - _BOTTOM), 1)

    marks = []
    stacked = list(
        zip(*(accumulate(sizes) for sizes in zip(*(timeline.bytes[n] for n in names), strict=True)), strict=True)
    )
    below: tuple[int, ...] = (0,) * len(seconds)
    for index, name in enumerate(names):
        upper = stacked[index]
        outline = _steps(seconds, upper, x, y) + _steps(seconds, below, x, y)[::-1]
        points = " ".join(f"{a},{b}" for a, b in outline)
        marks.append(f'<polygon points="{points}" fill="{_COLOURS[name]}"><title>{name}</title></polygon>')
        row = _TOP + 12 + 20 * (len(names) - 1 - index)
        marks.append(f'<rect x="{_WIDTH - _RIGHT + 16}" y="{row - 9}" width="11" height="11" fill="{_COLOURS[name]}"/>')
        marks.append(f'<text x="{_WIDTH - _RIGHT + 33}" y="{row}">{name}</text>')
        below = upper
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        level = y(share * top)
        marks.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level}" y2="{level}" stroke="#8884"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{level + 4}" text-anchor="end">{size_words(share * top)}</text>')
    last = -1e9
    for name, second in timeline.parts:
        place = x(second)
        marks.append(
            f'<line x1="{place}" x2="{place}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM + 4}" stroke="var(--rule, #0003)"/>'
        )
        if place - last > 52:  # a label has room
            marks.append(f'<text x="{place + 2}" y="{_HEIGHT - _BOTTOM + 16}">{html.escape(name)}</text>')
            last = place
    highest = max(range(len(totals)), key=totals.__getitem__, default=0)
    where = f"{memory.peak_op} of {memory.peak_module or 'the model'}"
    title = f"{size_words(memory.peak_bytes)} at most, in {memory.peak_part}: {where}"
    if totals:
        marks.append(f'<circle cx="{x(seconds[highest])}" cy="{y(top)}" r="3.5" fill="var(--ink, #222)"/>')
    unit = "ops" if predicted else f"{1e3 * end:.3g} ms"
    marks.append(f'<text x="{_LEFT}" y="16" font-weight="bold">{html.escape(title)}</text>')
    marks.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{unit}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="var(--ink, #222)">'
        f'<rect width="100%" height="100%" fill="var(--panel, #fff)"/>{"".join(marks)}</svg>'
    )


def _steps(seconds: Sequence[float], sizes: Sequence[int], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Corners of the line: memory changes at once, not along a slope."""
    corners: list[tuple[float, float]] = []
    for index, (second, size) in enumerate(zip(seconds, sizes, strict=True)):
        if index:
            corners.append((x(second), y(sizes[index - 1])))
        corners.append((x(second), y(size)))
    return corners
