"""Figures as SVG whose places are shares of the width, so that they fit any window and their text keeps its size."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from verim.report.html import Markup, element, joined

_INSIDE = 1e-6


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` as shares of an axis; `written` says one in words."""

    title: str
    low: float
    high: float
    written: Callable[[float], str]
    is_log: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`; what lies beyond is put on the edge."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About five round values."""
        if self.is_log:
            decades = math.log10(self.high / self.low)
            steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
            skip = max(1, round(decades / 6))
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [step * 10.0**power for power in exponents if not power % skip for step in steps]
        else:
            raw = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(raw))
            step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
            values = [step * index for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in values if self.low * (1 - _INSIDE) <= value <= self.high * (1 + _INSIDE)]


def log_scale(title: str, values: Iterable[float], written: Callable[[float], str]) -> Scale:
    """Around the positive ones of `values`, with a little room."""
    known = [value for value in values if value > 0 and math.isfinite(value)] or [1.0, 10.0]
    return Scale(title, min(known) / 1.4, max(known) * 1.4, written, is_log=True)


def zero_scale(title: str, values: Iterable[float], written: Callable[[float], str]) -> Scale:
    """From 0 to a little above the highest of `values`."""
    return Scale(
        title, 0.0, 1.08 * max((value for value in values if math.isfinite(value)), default=1.0) or 1.0, written
    )


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def frame(
    x: Scale, y: Scale, marks: Iterable[Markup], height: int, alternative: str, ticks: Sequence[float] = ()
) -> Markup:
    """Axes, grid and `marks` in a box whose height is given in pixels. `ticks`: those of x, where not its own."""
    lines = []
    for value in y.ticks():
        at = percent(1 - y.place(value))
        lines.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="grid-line"))
        lines.append(element("text", y.written(value), x="-8", y=at, dy="4", text_anchor="end"))
    for value in ticks or x.ticks():
        at = percent(x.place(value))
        lines.append(element("line", x1=at, x2=at, y1="0", y2="100%", class_="grid-line"))
        lines.append(element("text", x.written(value), x=at, y="100%", dy="18", text_anchor="middle"))
    lines.append(element("text", y.title, x="-8", y="-12", class_="axis-title"))
    lines.append(element("text", x.title, x="100%", y="100%", dy="38", text_anchor="end", class_="axis-title"))
    drawn = element("svg", *lines, *marks, height=str(height), role="img", aria_label=alternative)
    return element("div", drawn, class_="framed")


def segment(x: Scale, y: Scale, begin: tuple[float, float], end: tuple[float, float], **attributes: object) -> Markup:
    """A straight line between two points of the axes."""
    (x1, y1), (x2, y2) = begin, end
    places = {"x1": x.place(x1), "x2": x.place(x2), "y1": 1 - y.place(y1), "y2": 1 - y.place(y2)}
    return element("line", **{name: percent(place) for name, place in places.items()}, **attributes)


def dot(x: Scale, y: Scale, point: tuple[float, float], title: str, radius: float = 4, **attributes: object) -> Markup:
    """A circle that says `title` under the pointer."""
    place = {"cx": percent(x.place(point[0])), "cy": percent(1 - y.place(point[1])), "r": f"{radius:g}"}
    return element("circle", element("title", title), **place, **attributes)


def label(
    x: Scale, y: Scale, point: tuple[float, float], text: str, dx: float = 0, dy: float = 0, **more: object
) -> Markup:
    """Text so many pixels beside a point."""
    place = {"x": percent(x.place(point[0])), "y": percent(1 - y.place(point[1])), "dx": f"{dx:g}", "dy": f"{dy:g}"}
    return element("text", text, **place, **more)


def polyline(x: Scale, y: Scale, points: Sequence[tuple[float, float]], titles: Sequence[str], name: str) -> Markup:
    """Points joined by lines, in the colour of the class `name`."""
    lines = [segment(x, y, first, second) for first, second in itertools.pairwise(points)]
    dots = [dot(x, y, point, title) for point, title in zip(points, titles, strict=True)]
    return element("g", joined(*lines, *dots), class_=f"curve {name}")
