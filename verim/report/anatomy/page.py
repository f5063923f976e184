"""The page of a recorded step. It holds no scripts and loads nothing."""

from collections.abc import Sequence
from pathlib import Path

from verim import __version__
from verim.anatomy.advice import Advice
from verim.anatomy.ledger import Record
from verim.anatomy.picture import memory_picture
from verim.anatomy.terminal import memory_line
from verim.anatomy.words import count_words, share_words, size_words, time_words
from verim.report.anatomy import ledger
from verim.report.anatomy.flame import flame
from verim.report.anatomy.roofline import roofline
from verim.report.html import Markup, element, joined
from verim.report.page import resource
from verim.report.parts import panel, paragraph, section
from verim.runtime.files import write_text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def anatomy_page(
    record: Record,
    path: Path,
    title: str,
    advice: tuple[Advice, ...] = (),
    tokens: int | None = None,
) -> None:
    """Writes the page of a recorded step to `path`, whole or not at all.

    `title`: what was measured, as "mamba, width 128". `tokens` of a step, where it has some; `advice` of
    `verim.anatomy.advise`. Raises `SpaceError` where the disk is full.
    """
    sections = [
        section("What would gain most", ledger.changes(advice, record)),
        section(
            "The step, from left to right",
            paragraph("Each row divides the one above: parts, modules, ops. The pointer on a box tells its figures."),
            panel(flame(record)),
        ),
        section("The ledger", ledger.parts(record), ledger.ops(record), ledger.modules(record)),
        section("The roofline", panel(roofline(record))),
        section("Memory", paragraph(f"{memory_line(record.memory)}."), panel(_timeline(record))),
    ]
    sections.append(section("What the figures rest on", ledger.behind(record)))
    write_text(path, document(title, *ledger.waits(record), [_readouts(record, tokens), *sections]))


def _readouts(record: Record, tokens: int | None) -> Markup:
    memory = record.memory
    peak = memory.allocator_peak_bytes or memory.peak_bytes
    facts = [
        (
            "A step",
            time_words(record.step_seconds),
            f"{record.remainder_seconds / record.step_seconds:+.1%} beside its parts",
        ),
        ("Utilisation", share_words(record.utilisation), "of the measured peak"),
        ("FLOPs a step", count_words(record.flops), f"{count_words(record.recomputed_flops)} more computed again"),
        ("Memory at most", size_words(peak), f"in {memory.peak_part}" if memory.peak_part else "not observed"),
    ]
    if tokens is not None:
        facts.insert(1, ("Tokens a second", count_words(tokens / record.step_seconds), f"{tokens} a step"))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", more)))
            for name, value, more in facts
        ),
        class_="readouts",
    )


def _timeline(record: Record) -> Markup:
    if not record.memory.timeline.seconds:
        return paragraph("The memory was not observed.", quiet=True)
    return element("div", Markup(memory_picture(record.memory)), class_="scroll timeline", tabindex="0")


def document(title: str, heading: str, lead: str, sections: Sequence[object]) -> Markup:
    """A page without scripts, all in one file."""
    style = resource("style.css") + resource("anatomy/style.css")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"Anatomy of {title}"),
        element("style", Markup(style)),
    )
    mast = element(
        "header",
        element("strong", f"Anatomy of a training step: {title}"),
        element("span", f"verim {__version__}"),
        class_="mast",
    )
    main = element("main", element("h1", heading), element("p", lead, class_="lead"), *sections)
    body = element("body", element("div", mast, main, class_="sheet"))
    return joined(Markup("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")
