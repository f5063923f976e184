"""A page of its own for an experiment: figures and tables, in one file that opens with no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verim import __version__
from verim.report.figures import Figure, layout
from verim.report.html import Markup, data_block, element, joined
from verim.report.page import plotly_library, policy, resource
from verim.runtime.files import write_text


def write_sheet(
    path: Path,
    title: str,
    lead: str,
    sections: Sequence[Markup],
    figures: Mapping[str, Figure],
    made_by: str,
    kind: str = "A recipe of Verim",
) -> None:
    """Writes `sections` (of `verim.report.parts`) under a heading, with `figures` for their plots by name.

    `made_by` is the command that makes the page again, `kind` what the page is. Without figures it has no scripts.
    Raises `SpaceError` where the disk is full.
    """
    scripts = [plotly_library(), resource("page.js")] if figures else []
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy(scripts)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(resource("style.css"))),
    )
    mast = element("header", element("strong", kind), element("span", f"verim {__version__}"), class_="mast")
    main = element("main", element("h1", title), element("p", lead, class_="lead"), *sections)
    foot = element("footer", "Made by ", element("span", made_by, class_="mono"), ".")
    body = element(
        "body",
        element("div", mast, main, foot, class_="sheet"),
        data_block("figures", dict(figures)) if figures else None,
        *(element("script", Markup(script)) for script in scripts),
    )
    write_text(path, joined(Markup("<!doctype html>\n"), element("html", head, body, lang="en"), "\n"))


def figure(data: Sequence[Figure], x: Figure, y: Figure, height: int = 330, **more: Any) -> Figure:
    """Plotly's traces on axes of `verim.report.figures.axis`, in the style of the pages."""
    return {"data": list(data), "layout": layout(x, y, height, **more)}


def line(x: Sequence[float], y: Sequence[float], colour: str, name: str, **more: Any) -> Figure:
    """A trace of points joined by lines; `colour` is a token of the style sheet."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(x),
        "y": list(y),
        "name": name,
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 6},
        "hovertemplate": f"{name}: %{{y:.3g}} at %{{x:.3g}}<extra></extra>",
        **more,
    }


def raster(times: Sequence[float], rows: Sequence[float], colour: str, name: str) -> Figure:
    """A trace of spikes: a short upright stroke for each."""
    marker = {"symbol": "line-ns", "size": 5, "line": {"width": 1.2, "color": colour}, "color": colour}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(times),
        "y": list(rows),
        "name": name,
        "marker": marker,
        "hovertemplate": f"{name} %{{y}}, %{{x}} ms<extra></extra>",
    }
