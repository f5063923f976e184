"""What the study found, section by section: headline, envelope, IsoFLOP curves, laws, proof, sample."""

import math
from typing import Any

from verim.report import figures, words
from verim.report.figures import Figure
from verim.report.html import Markup, element, joined
from verim.report.parts import (
    Column,
    card,
    glyph,
    key,
    legend,
    named,
    named_as,
    panel,
    paragraph,
    plot,
    section,
    strip,
    table,
)
from verim.report.words import NBSP, UNKNOWN, Study, at, entries, pair

_CONSTANTS = {"E": "E", "A": "A", "B": "B", "alpha": "α", "beta": "β"}


def hero(study: Study) -> Markup:
    """The finding in one line, the plan in one sentence, the readouts, and what to be careful about."""
    return joined(
        element("h1", words.headline(study)),
        element("p", words.plan_sentence(study), class_="lead"),
        _readouts(study),
        _warnings(study),
    )


def _readouts(study: Study) -> Markup:
    plan, predicted, achieved = (
        study["recommended"],
        study["predicted_bits_per_byte"],
        study["achieved_bits_per_byte"],
    )
    interval = f"bits per byte, 90{NBSP}% interval {words.interval(study['interval'])}"
    proof = words.proof_sentence(study) or "the proof has not been run"
    cells = [
        (
            "Predicted",
            words.number(predicted),
            interval if predicted is not None else "the data carry no prediction",
        ),
        ("Achieved", words.number(achieved), proof),
        (
            "To train",
            words.title(at(plan, "architecture")),
            f"{words.quantity(at(plan, 'non_embedding'))} non-embedding parameters",
        ),
        (
            "On",
            f"{words.quantity(at(plan, 'tokens'), 'B')}",
            f"of text, for {words.duration(at(plan, 'seconds'))}",
        ),
    ]
    shown = [
        element("div", element("dt", name), element("dd", value, element("small", note))) for name, value, note in cells
    ]
    return element("dl", *shown, class_="readouts")


def _warnings(study: Study) -> Markup | None:
    found = entries(study["warnings"])
    if not found:
        return None
    items = element("ul", *(element("li", text) for text in found))
    return element("div", element("h2", "To be careful about"), items, class_="warnings", role="note")


def compute(study: Study) -> tuple[Markup, dict[str, Figure]]:
    """Best loss for each amount of compute, over all architectures, and the verdict at each budget."""
    names = list(words.architectures(study))
    points = figures.envelope_points(study)
    told = "; ".join(
        f"{words.scientific(budget)} FLOPs: {words.title(name)}, {words.number(loss)} bits per byte"
        for budget, name, loss in points
    )
    keys = legend(
        *(named(index, name) for index, name in enumerate(names)),
        joined(
            glyph(
                "M7 2.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z",
                fill="none",
                stroke="var(--quiet)",
                stroke_width="2",
            ),
            f" predicted, with its 90{NBSP}% interval",
        ),
        joined(
            glyph("M2.5 2.5L11.5 11.5M11.5 2.5L2.5 11.5", stroke="var(--ink)", stroke_width="3.2"),
            " achieved",
        )
        if study["achieved_bits_per_byte"] is not None
        else None,
        joined(glyph("M0 4H14V10H0z", fill="var(--rule)"), " envelope, the best of all") if len(names) > 1 else None,
    )
    caption = "Each point is the best model of its budget, the minimum of an IsoFLOP curve below."
    if len(names) > 1:
        caption += " The predictions are for the same training time here: who is faster spends more FLOPs in it."
    figure = panel(keys, plot("envelope", f"Best loss against training compute. {told or 'No minima.'}", caption, 400))
    body = section(
        "Best loss for each amount of compute",
        paragraph("How far a given amount of training brings each architecture, when its size is chosen well."),
        figure,
        _verdicts(study),
    )
    return body, {"envelope": figures.envelope(study)}


def _verdicts(study: Study) -> Markup | None:
    rows = [
        [
            words.scientific(verdict["budget"]),
            "no one" if verdict["ahead"] is None else named_as(study, verdict["ahead"]),
            words.number(verdict["margin_bits_per_byte"]),
            words.number(verdict["noise_bits_per_byte"]),
            _sentence(verdict["text"]),
        ]
        for verdict in entries(study["verdicts"])
    ]
    columns = [
        Column(joined("Budget", element("small", "FLOPs")), "text"),
        Column("Ahead", "text"),
        Column(joined("Margin", element("small", "bits per byte"))),
        Column(joined("Noise", element("small", "bits per byte"))),
        Column("In words", "wide"),
    ]
    return panel(table("The verdict at each budget", columns, rows)) if rows else None


def _sentence(text: str | None) -> str | None:
    return text and text[:1].upper() + text[1:]


def isoflop(study: Study) -> tuple[Markup, dict[str, Figure]]:
    """A panel an architecture: its IsoFLOP curves, and its minima as a table."""
    axes = figures.isoflop_axes(study)
    apart = len({tuple(y["range"]) for _, y in axes.values()}) > 1
    panels, drawn = [], {}
    for index, (name, found) in enumerate(words.architectures(study).items()):
        heading = element("h3", key(index), words.title(name))
        minima = entries(found.get("minima"))
        if not entries(found.get("runs")) and not minima:
            panels.append(panel(heading, paragraph("No run of this architecture has finished.", quiet=True)))
            continue
        identifier = f"isoflop-{index}"
        told = "; ".join(
            f"at {words.scientific(low['budget'])} FLOPs {words.quantity(low['non_embedding'])} parameters, "
            f"{words.number(low['bits_per_byte'])} bits per byte"
            for low in minima
        )
        alternative = f"IsoFLOP curves of {words.title(name)}. Minima: {told or 'none'}."
        panels.append(panel(heading, plot(identifier, alternative), _minima(name, minima)))
        drawn[identifier] = figures.isoflop(found, index, axes[name])
    body = section(
        "How large a model, for a given amount of compute",
        paragraph(
            "Every small marker is a trained model. Along a curve all models cost the same to train, larger "
            "ones seeing less text; the number at its end is that cost in FLOPs. The large marker is the "
            "curve's minimum, the size worth training; a hollow one lies on the edge of the ladder.",
            " The scales of loss differ, for the architectures lie far apart." if apart else None,
        ),
        element("div", *panels, class_="grid"),
    )
    return body, drawn


def _minima(name: str, minima: list[Any]) -> Markup | None:
    rows = []
    for low in minima:
        size, tokens = low["non_embedding"], low["tokens"]
        note = low["warning"] or (None if low["interior"] else "on the edge of the ladder")
        rows.append(
            [
                joined(words.scientific(low["budget"]), element("small", note, class_="none") if note else None),
                words.quantity(size),
                words.quantity(tokens),
                words.quantity(round(tokens / size)) if size and tokens is not None else UNKNOWN,
                words.number(low["bits_per_byte"]),
            ]
        )
    columns = [
        Column("FLOPs", "text"),
        Column("N"),
        Column("Bytes"),
        Column("Bytes / N"),
        Column("Bits per byte"),
    ]
    return table(f"IsoFLOP minima of {words.title(name)}", columns, rows) if rows else None


def laws(study: Study) -> Markup:
    """The fitted laws with their intervals, and the compute-optimal exponents beside the published ones."""
    measured = words.architectures(study)
    formula = Markup(
        '<p class="formula">L(N, D) = E + A / N<sup>α</sup> + B / D<sup>β</sup></p>'
        '<p class="quiet">L in bits per byte, N in non-embedding parameters, D in bytes; '
        f"90{NBSP}% bootstrap intervals.</p>"
    )
    rows: list[list[object] | Markup] = []
    notes = []
    for index, (name, found) in enumerate(measured.items()):
        law = found.get("law")
        if law is None:
            nothing = element("td", "The runs cannot carry a law.", colspan=6, class_="none")
            rows.append(element("tr", element("th", named(index, name), scope="row"), nothing))
            continue
        cells = [_constant(law, constant) for constant in _CONSTANTS]
        rows.append([named(index, name), *cells, words.percent(law["residual"])])
        notes += [f"{words.title(name)}: {note}" for note in entries(law["notes"])]
    columns = [
        Column("Architecture", "text"),
        *(Column(sign) for sign in _CONSTANTS.values()),
        Column("Spread"),
    ]
    listed = element("ul", *(element("li", note) for note in notes), class_="notes") if notes else None
    return section(
        "The laws",
        formula,
        panel(table("Parameters of the fitted laws", columns, rows), listed),
        _exponents(measured),
    )


def _constant(law: dict[str, Any], name: str) -> Markup:
    """A parameter with its interval, or the words that the data cannot carry it, and then no digits."""
    value = law[name]
    if value is None or at(law, "identified", name) is False:
        return element("span", "not identified", class_="none")
    ends = pair(at(law, "intervals", name))
    between = f"{words.significant(ends[0])} to {words.significant(ends[1])}" if ends else "no interval"
    return joined(words.significant(value), element("small", between))


def _exponents(measured: dict[str, dict[str, Any]]) -> Markup | None:
    """Growth of the best N and D with compute: here, then published, with N's exponent on a common scale."""
    known = {name: found["exponents"] for name, found in measured.items() if found.get("exponents")}
    published: dict[str, Any] = {}
    for exponents in known.values():
        published |= exponents["published"] or {}
    found_here = [words.exponent(exponents, "N") for exponents in known.values()]
    marks = [mark for value, ends in found_here for mark in (value, *(ends or ()))]
    marks = [value for value in (*marks, *(at(growth, "N") for growth in published.values())) if value is not None]
    if not marks:
        return None
    scale = (math.floor(10 * min(marks)) / 10, math.ceil(10 * max(marks)) / 10)
    rows: list[list[object]] = []
    for index, (name, found) in enumerate(measured.items()):
        exponents = found.get("exponents")
        if exponents is None:
            continue
        value, ends = words.exponent(exponents, "N")
        rows.append(
            [
                named(index, name),
                _exponent(value, ends),
                _exponent(*words.exponent(exponents, "D")),
                _on_scale(scale, value, ends, figures.colour(index)),
            ]
        )
    for name, growth in published.items():
        value = at(growth, "N")
        line = _on_scale(scale, value, None, "quiet")
        rows.append([name, words.number(value, 2), words.number(at(growth, "D"), 2), line])
    columns = [
        Column("Compute-optimal growth", "text"),
        Column(Markup("<i>a</i> in N ∝ C<sup><i>a</i></sup>")),
        Column(Markup("<i>b</i> in D ∝ C<sup><i>b</i></sup>")),
        Column(joined(Markup("<i>a</i>"), f" on a scale from {scale[0]:.1f} to {scale[1]:.1f}"), "wide"),
    ]
    sources = dict.fromkeys(exponents["source"] for exponents in known.values() if exponents["source"])
    told = [element("li", f"The exponents measured here come from {source}.") for source in sources]
    listed = element("ul", *told, class_="notes") if told else None
    return panel(table("Compute-optimal exponents, here and in the literature", columns, rows), listed)


def _exponent(value: float | None, ends: tuple[float, float] | None) -> Markup:
    if value is None:
        return element("span", "not identified", class_="none")
    between = f"{words.number(ends[0], 2)} to {words.number(ends[1], 2)}" if ends else "no interval"
    return joined(words.number(value, 2), element("small", between))


def _on_scale(
    scale: tuple[float, float], value: float | None, ends: tuple[float, float] | None, mark: str
) -> Markup | None:
    if value is None:
        return None
    alternative = f"{words.number(value, 2)} on a scale from {scale[0]:.1f} to {scale[1]:.1f}"
    return strip(scale, alternative, span=ends, dot=value, mark=mark)


def proof(study: Study) -> tuple[Markup, dict[str, Figure]]:
    """Predicted against achieved: the gauge, the learning curve of the target run, and what was trained."""
    plan = study["recommended"]
    drawn: dict[str, Figure] = {}
    measured: list[object] = [_gauge(study)]
    if entries(at(study["target"], "curve")):
        names = list(words.architectures(study))
        name = at(plan, "architecture")
        drawn["learning-curve"] = figures.learning_curve(study, names.index(name) if name in names else 0)
        alternative = (
            f"Learning curve of the target run, ending at {words.number(study['achieved_bits_per_byte'])} "
            f"bits per byte; predicted {words.number(study['predicted_bits_per_byte'])}."
        )
        caption = (
            "Held-out loss of the recommended model while it trained; the band is the predicted interval. "
            "The very first losses may lie above the frame."
        )
        measured.append(plot("learning-curve", alternative, caption))
    else:
        measured.append(
            paragraph(
                "The recommended model has not been trained: there is nothing to hold against it yet.",
                quiet=True,
            )
        )
    intro = words.proof_sentence(study)
    sentence = f"The recommended model came out {intro}." if intro else "The prediction stands; the proof is missing."
    if plan is None:
        sentence = "Without a prediction there is nothing to prove."
    body = section(
        "Predicted against achieved",
        paragraph(sentence),
        element("div", panel(*measured), _plan(study, plan), class_="grid uneven"),
    )
    return body, drawn


def _gauge(study: Study) -> Markup | None:
    predicted, achieved, ends = (
        study["predicted_bits_per_byte"],
        study["achieved_bits_per_byte"],
        pair(study["interval"]),
    )
    if predicted is None:
        return None
    values = [value for value in (predicted, achieved, *(ends or ())) if value is not None]
    room = 0.35 * (max(values) - min(values)) or 0.05
    low, high = min(values) - room, max(values) + room
    alternative = (
        f"predicted {words.number(predicted)}, interval {words.interval(ends)}, achieved {words.number(achieved)}"
    )
    keys = [
        joined(glyph("M6 0H8V14H6z", fill="var(--ink)"), f" predicted {words.number(predicted)}"),
        joined(glyph("M0 4H14V10H0z", fill="var(--accent)", opacity="0.4"), f" interval {words.interval(ends)}"),
    ]
    if achieved is not None:
        circle = glyph("M7 1.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 1 1 0-11z", fill="var(--accent)")
        keys.append(joined(circle, f" achieved {words.number(achieved)}"))
    scale = element("div", element("span", words.number(low, 2)), element("span", words.number(high, 2)), class_="ends")
    return element(
        "div",
        legend(*keys),
        strip((low, high), alternative, ends, dot=achieved, dash=predicted),
        scale,
        class_="gauge",
    )


def _plan(study: Study, plan: dict[str, Any] | None) -> Markup | None:
    if plan is None:
        return None
    epochs = study.get("epochs")  # not in a study from before they were counted
    facts = [
        ("Architecture", named_as(study, plan["architecture"])),
        ("Width × depth", f"{plan['width'] or UNKNOWN} × {plan['depth'] or UNKNOWN}"),
        ("Heads", plan["heads"]),
        (
            "Parameters",
            f"{words.quantity(plan['non_embedding'])} non-embedding, {words.quantity(plan['total'])} total",
        ),
        ("Text", words.quantity(plan["tokens"], "B")),
        *([] if epochs is None else [("Passes over the text", words.significant(epochs, 2))]),
        ("Bytes / parameter", _ratio(plan["tokens"], plan["non_embedding"])),
        ("Batch", f"{words.exact(plan['batch_tokens'])} bytes in sequences of {plan['length'] or UNKNOWN}"),
        ("Steps", words.exact(plan["steps"])),
        ("Learning rate", words.significant(plan["learning_rate"], 2)),
        ("Compute", f"{words.scientific(plan['budget'])} FLOPs"),
        ("Time, planned", words.duration(plan["seconds"])),
        ("Time, measured", words.duration(at(study["target"], "seconds"))),
    ]
    return card("The recommended model", facts)


def _ratio(tokens: float | None, size: float | None) -> str:
    return UNKNOWN if tokens is None or not size else words.quantity(round(tokens / size))


def sample(study: Study) -> Markup | None:
    """Text that the trained model wrote, as it wrote it."""
    found = at(study["target"], "sample")
    if at(found, "text") is None:
        return None
    return section(
        "What the model writes",
        paragraph("The trained model continued the marked prompt. It reads and writes bytes; nothing was picked."),
        panel(element("pre", element("mark", found["prompt"]), found["text"], tabindex="0")),
    )
