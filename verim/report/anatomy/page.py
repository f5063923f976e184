"""The page of a recorded step. It holds no scripts and loads nothing."""

from collections.abc import Sequence
from pathlib import Path

from verim.anatomy.advice import Advice
from verim.anatomy.ledger import Record
from verim.anatomy.picture import memory_picture
from verim.anatomy.sweep import Sweep
from verim.anatomy.terminal import memory_line
from verim.anatomy.words import count_words, share_words, size_words, time_words
from verim.report.anatomy import ledger
from verim.report.anatomy.document import document
from verim.report.anatomy.flame import flame
from verim.report.anatomy.roofline import roofline
from verim.report.anatomy.sweeps import sweep_section
from verim.report.html import Markup, element
from verim.report.parts import panel, paragraph, section
from verim.runtime.files import write_text


def anatomy_page(
    record: Record,
    path: Path,
    title: str,
    advice: tuple[Advice, ...] = (),
    tokens: int | None = None,
    sweeps: Sequence[Sweep] = (),
) -> None:
    """Writes the page of a recorded step to `path`, whole or not at all.

    `title`: what was measured, as "mamba, width 128". `advice` of `verim.anatomy.advise`; `tokens` of a step,
    where it has some; `sweeps` of the same model, for curves beside it. Raises `SpaceError` where the disk is full.
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
    if sweeps:
        sections.append(section("Sweeps", *map(sweep_section, sweeps)))
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
