"""The page's building blocks: tables, cards, legends, strips and the boxes that figures are drawn into."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from verim.report import figures, words
from verim.report.html import Markup, element, joined
from verim.report.words import Study

# The markers of plotly in a box of 14 by 14, in the order of `figures.SYMBOLS`.
_GLYPHS = (
    "M7 2a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
    "M7 0.8L13.2 7L7 13.2L0.8 7z",
    "M2.4 2.4H11.6V11.6H2.4z",
    "M7 1.2L13.2 12H0.8z",
    "M5 1H9V5H13V9H9V13H5V9H1V5H5z",
    "M7 .6L8.6 5.2L13.4 5.2L9.5 8.1L11 12.8L7 10L3 12.8L4.5 8.1L.6 5.2L5.4 5.2z",
)


class Column(NamedTuple):
    """A table's column: its heading, and its kind: `number` (set flush right), `text` or `wide`."""

    heading: object
    kind: str = "number"


def table(label: str, columns: Sequence[Column], rows: Iterable[Sequence[object] | Markup]) -> Markup:
    """A table in a box that scrolls sideways; `label` names the box for who cannot see it.

    A row is a sequence of cells, the first of which names the row, or a finished `<tr>`.
    """
    kinds = [column.kind for column in columns]
    head = [
        element("th", column.heading, scope="col", class_=kind) for column, kind in zip(columns, kinds, strict=True)
    ]
    body = []
    for row in rows:
        if isinstance(row, Markup):
            body.append(row)
            continue
        first, *others = row
        cells = [element("td", cell, class_=kind) for cell, kind in zip(others, kinds[1:], strict=True)]
        body.append(element("tr", element("th", first, scope="row", class_=kinds[0]), *cells))
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=label)


def key(index: int) -> Markup:
    """The marker of architecture number `index`, as in the figures."""
    glyph = _GLYPHS[figures.SYMBOLS.index(figures.symbol(index))]
    path = element("path", d=glyph, fill=f"var(--{figures.colour(index)})")
    return element("svg", path, class_="key", viewBox="0 0 14 14", aria_hidden="true")


def named(index: int, name: object) -> Markup:
    """An architecture's marker and name."""
    return element("span", key(index), " ", words.title(name), class_="named")


def named_as(study: Study, name: object) -> Markup:
    """The same, by name; without a marker where the study has no such architecture."""
    names = list(words.architectures(study))
    return named(names.index(str(name)), name) if name in names else joined(words.title(name))


def legend(*items: object) -> Markup:
    """A line of markers with their meaning."""
    return element("ul", *(element("li", item) for item in items if item is not None), class_="legend")


def glyph(path: str, **attributes: object) -> Markup:
    """A key drawn from an SVG path, for what is not an architecture."""
    return element("svg", element("path", d=path, **attributes), class_="key", viewBox="0 0 14 14", aria_hidden="true")


def plot(identifier: str, alternative: str, caption: object = None, height: int = 330) -> Markup:
    """The box of a figure that `page.js` draws into, with its text for who does not see it."""
    style = f"min-height:{height}px"
    box = element("div", id=identifier, class_="plot", role="img", aria_label=alternative, style=style)
    return element("figure", box, element("figcaption", caption) if caption else None)


def strip(
    scale: tuple[float, float],
    alternative: str,
    span: tuple[float, float] | None = None,
    dot: float | None = None,
    dash: float | None = None,
    mark: str | None = None,
) -> Markup:
    """A scale with an interval (`span`), a `dot` and a `dash`; `mark` is the colour token of span and dot."""
    low, high = scale

    def place(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))

    marks = []
    if span is not None:
        left, right = place(span[0]), place(span[1])
        marks.append(element("i", class_="span", style=f"left:{left:.2f}%;width:{max(right - left, 0.5):.2f}%"))
    if dash is not None:
        marks.append(element("i", class_="dash", style=f"left:{place(dash):.2f}%"))
    if dot is not None:
        marks.append(element("i", class_="dot", style=f"left:{place(dot):.2f}%"))
    style = f"--mark:var(--{mark})" if mark else None
    return element("span", *marks, class_="strip", role="img", aria_label=alternative, style=style)


def card(heading: str, facts: Iterable[tuple[object, object]]) -> Markup:
    """A panel of named facts; an unknown one is a dash."""
    return element("div", element("h3", heading), facts_list(facts), class_="panel card")


def facts_list(facts: Iterable[tuple[object, object]]) -> Markup:
    """Named facts as two columns, inside a card."""
    lines = [
        joined(element("dt", name), element("dd", words.UNKNOWN if fact is None else fact)) for name, fact in facts
    ]
    return element("dl", *lines)


def panel(*children: object) -> Markup:
    """A framed box."""
    return element("div", *children, class_="panel")


def section(heading: str, *children: object) -> Markup:
    """A part of the page under its heading."""
    return element("section", element("h2", heading), *children)


def paragraph(*children: object, quiet: bool = False) -> Markup:
    """A paragraph of text."""
    return element("p", *children, class_="quiet" if quiet else None)
