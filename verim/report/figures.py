"""The figures as plotly's own dictionaries, made without its Python classes, which load slower than the page.

A colour is a token here, resolved by `page.js` from the page's style sheet when the figure is drawn, so that
a figure follows the light and the dark scheme: `"ink"`, `"arch-2"`, or with an opacity `"arch-2/0.4"`. Text
from a study passes through `plain`, since plotly reads a little HTML in labels.
"""

import html
import math
from collections.abc import Iterable
from typing import Any

from verim.report import words
from verim.report.words import NBSP, Study, at, entries, pair

Figure = dict[str, Any]

COLOURS = 6
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
_POINT = {"mode": "markers", "hoverinfo": "text", "type": "scatter"}
_LINE = {"mode": "lines", "hoverinfo": "skip", "type": "scatter"}


def plain(text: object) -> str:
    """`text` for a label of plotly, which reads tags and entities there: they are escaped."""
    return html.escape(words.visible(str(text)), quote=False)


def colour(index: int) -> str:
    """The colour token of the study's architecture number `index`."""
    return f"arch-{index % COLOURS}"


def symbol(index: int) -> str:
    """Its marker. Beyond six architectures colours return with another marker: no pair is used twice."""
    return SYMBOLS[(index + index // COLOURS) % len(SYMBOLS)]


def _ticks(low: float, high: float, written: Any) -> Figure:
    """Ticks of a logarithmic axis: 1, 2, 5 of each decade on a short axis, fewer on a long one."""
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 1.3 else (1, 3) if decades < 3 else (1,)
    values = [
        step * 10.0**decade
        for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in steps
        if low <= step * 10.0**decade <= high
    ]
    return {"tickmode": "array", "tickvals": values, "ticktext": [written(value) for value in values]}


def _round_quantity(value: float) -> str:
    """A tick's 1, 2, 3 or 5 of a power of ten, with a prefix: `30 k`."""
    size, prefix = next(((size, name) for size, name in words.PREFIXES if value >= 0.999 * size), (1.0, ""))
    return f"{value / size:.3g}{NBSP}{prefix}"


def _log_axis(title: str, values: Iterable[float], written: Any, right: float = 1.0) -> Figure:
    """A logarithmic axis around `values`, with room for labels where `right` is more than 1."""
    known = [value for value in values if value is not None and value > 0] or [1.0, 10.0]
    low, high = min(known) / 1.3, max(known) * 1.3 * right
    return {
        **axis(title),
        **_ticks(low, high, written),
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
    }


def axis(title: str) -> Figure:
    """A linear axis in the style of the pages."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 12, "color": "quiet"}},
        "automargin": True,
        "fixedrange": True,
        "gridcolor": "grid",
        "linecolor": "rule",
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rule",
        "tickfont": {"size": 12, "color": "quiet"},
        "zeroline": False,
        "showline": True,
    }


def _loss_axis(losses: Iterable[float | None]) -> Figure:
    known = [loss for loss in losses if loss is not None] or [0.0, 1.0]
    room = 0.1 * (max(known) - min(known)) or 0.05
    return axis("bits per byte, held out") | {
        "range": [min(known) - room, max(known) + room],
        "nticks": 7,
        "tickformat": ".2f" if max(known) - min(known) > 0.08 else ".3f",
    }


def layout(x: Figure, y: Figure, height: int, **more: Any) -> Figure:
    """A figure's layout in that style."""
    return {
        "xaxis": x,
        "yaxis": y,
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
        "font": {"size": 12, "color": "ink"},
        "paper_bgcolor": "panel",
        "plot_bgcolor": "panel",
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "page",
            "bordercolor": "rule",
            "font": {"size": 12, "color": "ink"},
            "align": "left",
        },
        **more,
    }


def _marker(index: int, size: int = 8, filled: bool = True, opacity: float = 1.0) -> Figure:
    """A filled or a hollow marker of the architecture; hollow is an outline around the panel's colour."""
    token = colour(index) if opacity == 1 else f"{colour(index)}/{opacity:.2f}"
    return {
        "symbol": symbol(index),
        "size": size,
        "color": token if filled else "panel",
        "line": {"width": 1 if filled else 2, "color": "panel" if filled else token},
    }


def _hover(*lines: str) -> str:
    return "<br>".join(plain(line) for line in lines)


def _curve(points: Any) -> tuple[list[float], list[float]]:
    """The points (N, loss) of a fitted curve as two lists; none where there is no curve."""
    known = [point for point in points or [] if point and all(point)]
    return [size for size, _ in known], [loss for _, loss in known]


def isoflop_axes(study: Study) -> dict[str, tuple[Figure, Figure]]:
    """The axes of each architecture's IsoFLOP figure: the same for all, so that they can be compared by eye.

    Where one architecture lies so far from the others that a common scale of losses would flatten every curve,
    each has its own.
    """
    sizes: list[float] = []
    losses: dict[str, list[float]] = {}
    for name, found in words.architectures(study).items():
        points = [*entries(found.get("runs")), *entries(found.get("minima"))]
        sizes += [point["non_embedding"] for point in points if point["non_embedding"] is not None]
        losses[name] = [point["bits_per_byte"] for point in points if point["bits_per_byte"] is not None]
    x = _log_axis("N, non-embedding parameters", sizes, _round_quantity, right=1.25)
    every = [loss for mine in losses.values() for loss in mine]
    widest = max((max(mine) - min(mine) for mine in losses.values() if mine), default=0.0)
    flattened = bool(every) and max(every) - min(every) > 1.7 * widest
    return {name: (x, _loss_axis(mine if flattened else every)) for name, mine in losses.items()}


def isoflop(found: Figure, index: int, axes: tuple[Figure, Figure]) -> Figure:
    """Runs of one architecture, each budget's fitted curve and its minimum; the paler, the smaller the budget.

    A minimum inside the ladder is a large filled marker, one on its edge a large hollow one.
    """
    runs, minima = entries(found.get("runs")), entries(found.get("minima"))
    budgets = sorted({point["budget"] for point in (*runs, *minima) if point["budget"] is not None})
    data: list[Figure] = []
    notes: list[Figure] = []
    for rank, budget in enumerate(budgets):
        opacity = 1.0 if len(budgets) == 1 else 0.5 + 0.5 * rank / (len(budgets) - 1)
        mine = [
            run for run in runs if run["budget"] == budget and run["non_embedding"] and run["bits_per_byte"] is not None
        ]
        mine.sort(key=lambda run: run["non_embedding"])
        lows = [low for low in minima if low["budget"] == budget]
        for low in lows:
            x, y = _curve(low["curve"])
            line = {"color": f"{colour(index)}/{opacity:.2f}", "width": 1.8}
            data.append({**_LINE, "x": x, "y": y, "line": line})
        data.append(
            {
                **_POINT,
                "x": [run["non_embedding"] for run in mine],
                "y": [run["bits_per_byte"] for run in mine],
                "text": [_run_text(run) for run in mine],
                "marker": _marker(index, 7, opacity=opacity),
            }
        )
        data += [
            {
                **_POINT,
                "x": [low["non_embedding"]],
                "y": [low["bits_per_byte"]],
                "text": [_minimum_text(low)],
                "marker": _marker(index, 13, bool(low["interior"])),
            }
            for low in lows
        ]
        if mine:
            notes.append(
                {
                    "x": math.log10(mine[-1]["non_embedding"]),
                    "y": mine[-1]["bits_per_byte"],
                    "text": words.scientific(budget),
                    "yshift": 12,
                    "showarrow": False,
                    "font": {"size": 11, "color": "quiet"},
                }
            )
    return {"data": data, "layout": layout(*axes, 330, annotations=notes)}


def _run_text(run: Figure) -> str:
    return _hover(
        f"{words.quantity(run['non_embedding'])} parameters, width {words.shown(run['width'])}, "
        f"depth {words.shown(run['depth'])}",
        f"{words.quantity(run['tokens'])} bytes, {words.scientific(run['budget'])} FLOPs",
        f"{words.number(run['bits_per_byte'])} bits per byte",
    )


def _minimum_text(low: Figure) -> str:
    place = "Minimum" if low["interior"] else "Edge of the ladder"
    return _hover(
        f"{place} at {words.scientific(low['budget'])} FLOPs",
        f"{words.quantity(low['non_embedding'])} parameters, {words.quantity(low['tokens'])} bytes",
        f"{words.number(low['bits_per_byte'])} bits per byte",
    )


def envelope_points(study: Study) -> list[tuple[float, str, float]]:
    """(FLOPs, architecture, bits per byte) of the best minimum at each budget, by growing budget."""
    best: dict[float, tuple[float, str]] = {}
    for name, found in words.architectures(study).items():
        for low in entries(found.get("minima")):
            budget, loss = low["budget"], low["bits_per_byte"]
            if budget is not None and loss is not None:
                best[budget] = min(best.get(budget, (math.inf, "")), (loss, name))
    return [(budget, name, loss) for budget, (loss, name) in sorted(best.items())]


def envelope(study: Study) -> Figure:
    """Best loss against FLOPs: the minima, the envelope beneath them, the predictions, the proof."""
    points = envelope_points(study)
    data: list[Figure] = [
        {
            **_LINE,
            "x": [budget for budget, _, _ in points],
            "y": [loss for _, _, loss in points],
            "line": {"color": "band", "width": 14},
        }
    ]
    flops = [budget for budget, _, _ in points]
    losses: list[float | None] = []
    measured = words.architectures(study)
    for index, (name, found) in enumerate(measured.items()):
        minima = [
            low
            for low in entries(found.get("minima"))
            if low["budget"] is not None and low["bits_per_byte"] is not None
        ]
        minima.sort(key=lambda low: low["budget"])
        losses += [low["bits_per_byte"] for low in minima]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "hoverinfo": "text",
                "x": [low["budget"] for low in minima],
                "y": [low["bits_per_byte"] for low in minima],
                "text": [f"<b>{plain(words.title(name))}</b><br>{_minimum_text(low)}" for low in minima],
                "line": {"color": colour(index), "width": 2},
                "marker": _marker(index, 9) | {"size": 10},
            }
        )
        prediction: Any = found.get("prediction")
        if at(prediction, "budget") is None or at(prediction, "bits_per_byte") is None:
            continue
        aside = _aside(prediction["budget"], index, len(measured))
        data += _prediction(name, index, prediction, aside, minima)
        flops.append(aside)
        losses += [prediction["bits_per_byte"], *(pair(prediction["interval"]) or ())]
    for point in _achieved(study):
        data.append(point)
        flops += point["x"]
        losses += point["y"]
    x = _log_axis("training compute C, FLOPs", flops, lambda value: words.scientific(value, 1))
    return {"data": data, "layout": layout(x, _loss_axis(losses), 400)}


def _achieved(study: Study) -> list[Figure]:
    """The proof as a cross, at the place of its architecture's prediction; nothing before there is a proof."""
    achieved, budget = study["achieved_bits_per_byte"], at(study["recommended"], "budget")
    if achieved is None or budget is None:
        return []
    names, name = list(words.architectures(study)), at(study["recommended"], "architecture")
    place = _aside(budget, names.index(name), len(names)) if name in names else budget
    marker = {"symbol": "x", "size": 9, "color": "ink", "line": {"width": 1, "color": "panel"}}
    text = _hover("Achieved", f"{words.number(achieved)} bits per byte")
    return [{**_POINT, "x": [place], "y": [achieved], "text": [text], "marker": marker}]


def _aside(budget: float, index: int, count: int) -> float:
    """Where a prediction is drawn: all are at one budget, and would cover one another if not set aside."""
    return budget * 1.07 ** (index - (count - 1) / 2)


def _prediction(name: str, index: int, prediction: Figure, x: float, minima: list[Figure]) -> list[Figure]:
    """A hollow marker with its 90 % interval, and a dotted line to it from the last minimum."""
    loss, ends = prediction["bits_per_byte"], pair(prediction["interval"])
    point = {
        **_POINT,
        "x": [x],
        "y": [loss],
        "marker": _marker(index, 12, filled=False),
        "text": [
            f"<b>{plain(words.title(name))}</b><br>"
            + _hover(
                f"Predicted at {words.scientific(prediction['budget'])} FLOPs",
                f"{words.number(loss)} bits per byte",
                f"90{NBSP}% interval {words.interval(ends)}",
            )
        ],
    }
    if ends is not None:
        point["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [ends[1] - loss],
            "arrayminus": [loss - ends[0]],
            "color": colour(index),
            "thickness": 1.6,
            "width": 5,
        }
    if not minima:
        return [point]
    last = minima[-1]
    dotted = {"color": colour(index), "width": 1.5, "dash": "dot"}
    return [{**_LINE, "x": [last["budget"], x], "y": [last["bits_per_byte"], loss], "line": dotted}, point]


def learning_curve(study: Study, index: int) -> Figure:
    """Loss of the target run against its tokens, with the prediction and its interval as line and band."""
    curve = [
        (tokens, loss)
        for tokens, loss in entries(at(study["target"], "curve"))
        if tokens is not None and loss is not None
    ]
    tokens, losses = [point[0] for point in curve], [point[1] for point in curve]
    predicted, ends = study["predicted_bits_per_byte"], pair(study["interval"])
    shapes: list[Figure] = []
    across = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below", "line": {"width": 0}}
    if ends is not None:
        shapes.append({**across, "y0": ends[0], "y1": ends[1], "fillcolor": "band"})
    notes: list[Figure] = []
    if predicted is not None:
        line = {"width": 1.5, "dash": "dot", "color": "ink"}
        shapes.append({**across, "type": "line", "y0": predicted, "y1": predicted, "line": line})
        notes.append(
            {
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "xshift": 6,
                "y": predicted,
                "yanchor": "bottom",
                "text": f"predicted {words.number(predicted)}",
                "showarrow": False,
                "font": {"size": 12, "color": "ink"},
            }
        )
    x = axis("bytes seen in training") | {"rangemode": "tozero", "tickformat": "~s", "nticks": 7}
    drawn = {
        "type": "scatter",
        "mode": "lines+markers",
        "hoverinfo": "text",
        "x": tokens,
        "y": losses,
        "text": [
            _hover(f"{words.quantity(seen)} bytes seen", f"{words.number(loss)} bits per byte") for seen, loss in curve
        ],
        "line": {"color": colour(index), "width": 2},
        "marker": _marker(index, 6),
    }
    # The first losses are several times the last: what matters would be a flat line under them.
    late = [loss for seen, loss in curve if seen >= 0.08 * tokens[-1]]
    y = _loss_axis([*late, predicted, *(ends or ())])
    return {"data": [drawn], "layout": layout(x, y, 330, shapes=shapes, annotations=notes)}
