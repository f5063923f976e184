"""The ledger in tables: the parts of the step, the dearest ops, what recording rests on; and the advice."""

from verim.anatomy.advice import Advice
from verim.anatomy.ledger import Record
from verim.anatomy.roofline import op_points
from verim.anatomy.terminal import conditions, headline
from verim.anatomy.waits import waits_of
from verim.anatomy.words import count_words, share_words, size_words, time_words
from verim.report.anatomy.plots import percent
from verim.report.html import Markup, element, joined
from verim.report.parts import Column, card, panel, paragraph, table

_OPS = 20
_MODULES = 1000  # so many rows at most: a page stays below 1 MB
_BOUNDS = {"compute": "arithmetic", "memory": "memory", "launch": "launches"}


def waits(record: Record) -> tuple[str, str]:
    """What the step waits for most, and the rest of what it waits for, in sentences."""
    heading, said = headline(record), []
    for index, wait in enumerate(waits_of(record)):
        if index:
            said.append(f"{wait.sentence}.")
        else:
            heading = wait.sentence
        if wait.bound != "launch":
            work = "arithmetic" if wait.bound == "compute" else "bandwidth"
            said.append(f"These ops reach {share_words(wait.fraction)} of the {work} that they could have.")
    return heading, " ".join(said)


def changes(advice: tuple[Advice, ...], record: Record) -> Markup:
    """The changes that would gain most, the best first."""
    if not advice:
        return paragraph("Nothing in the ledger promises more than a thousandth of the step.", quiet=True)
    cards = [
        element(
            "li",
            element("h3", each.change),
            element(
                "p",
                element("strong", f"{'up to ' if each.is_limit else ''}{share_words(each.share)} less time"),
                f" ({time_words(each.seconds)} of {time_words(record.step_seconds)}; {each.speedup:.3g} times as fast)",
            ),
            element("p", each.reason, class_="quiet"),
            class_="panel",
        )
        for each in advice
    ]
    note = (
        "Each gain is computed from this ledger and the measured ceilings, for the same work and for that change "
        "alone: two changes may save the same seconds."
    )
    return joined(element("ol", *cards, class_="changes"), paragraph(note, quiet=True))


def parts(record: Record) -> Markup:
    """The parts of the step, and what is left of it."""
    sums, step = record.grouped(lambda op: op.part), record.step_seconds
    rows: list[list[object]] = []
    for part in record.parts:
        inside = sums.get(part.name)
        fill = element("i", style=f"width:{percent(min(1.0, part.seconds / step))}")
        bar = element("span", element("span", fill, class_="bar"), class_="bars one")
        figures = (
            ("–",) * 5
            if inside is None
            else (
                count_words(inside.flops),
                count_words(inside.recomputed_flops),
                size_words(inside.bytes),
                f"{inside.intensity:.3g}",
                time_words(inside.overhead_seconds),
            )
        )
        rows.append([part.name, bar, time_words(part.seconds), f"{part.seconds / step:.1%}", *figures])
    rest = record.remainder_seconds
    rows.append(["remainder", "", time_words(rest), f"{rest / step:.1%}", *("",) * 5])
    rows.append(["step", "", time_words(step), "100.0%", *("",) * 5])
    headings = ("Time", "Share", "FLOPs", "Again", "Bytes", "FLOPs a byte", "Between ops")
    columns = [Column("Part", "text"), Column("", "wide"), *map(Column, headings)]
    open_ = None if record.closes else paragraph("The parts do not sum to the step within 2 %: the ledger is open.")
    return joined(open_, panel(table("The parts of the step", columns, rows)))


def ops(record: Record) -> Markup:
    """The ops that take longest, in each part."""
    sums = record.grouped(lambda op: (op.name, op.part))
    rows = [
        [
            joined(point.name.removeprefix("aten."), " ", element("small", point.kind)),
            f"{sums[point.name, point.kind].calls:.4g}",
            time_words(point.seconds),
            share_words(point.seconds / record.step_seconds),
            f"{point.intensity:.3g}",
            count_words(point.rate),
            size_words(point.bytes / sums[point.name, point.kind].seconds) if point.bytes else "–",
            share_words(point.fraction),
            _BOUNDS[point.bound],
        ]
        for point in op_points(record)[:_OPS]
    ]
    headings = ("Calls", "Time", "Of the step", "FLOPs a byte", "FLOP/s", "Bytes/s", "Of the ceiling")
    columns = [Column("Op", "text"), *map(Column, headings), Column("Bound by", "text")]
    return panel(
        element("details", element("summary", f"The {len(rows)} ops that take longest"), table("Ops", columns, rows))
    )


def modules(record: Record) -> Markup:
    """Every module, its children included, in the order of the model."""
    found = list(record.modules().walk())
    rows = [
        [
            joined(module.name or "the model", " ", element("small", module.kind)),
            f"{module.calls:.4g}",
            time_words(module.total_seconds),
            share_words(module.total_seconds / record.step_seconds),
            count_words(module.flops),
            size_words(module.bytes),
            count_words(sum(below.parameters for below in module.walk())),
        ]
        for module in found[:_MODULES]
    ]
    headings = ("Calls", "Time", "Of the step", "FLOPs", "Bytes", "Parameters")
    columns = [Column("Module, with all in it", "text"), *map(Column, headings)]
    summary = "Every module" if len(rows) == len(found) else f"The first {len(rows)} of {len(found)} modules"
    return panel(element("details", element("summary", summary), table("Modules", columns, rows)))


def behind(record: Record) -> Markup:
    """What the figures rest on, and what a reader should know of them."""
    ceilings = record.ceilings
    peaks = ", ".join(f"{name} {count_words(rate)}FLOP/s" for name, rate in ceilings.matmul.items())
    ladder = ", ".join(f"{size_words(rate)}/s at {size_words(size)}" for size, rate in ceilings.ladder)
    facts: list[tuple[object, object]] = [
        ("Device", record.device),
        ("Threads", ceilings.threads),
        ("Products", peaks),
        ("Bandwidth", ladder),
        ("A launch", time_words(ceilings.launch_seconds)),
    ]
    silent = [fact for fact in record.facts if not fact.calls and fact.parameters]
    notes = [element("li", f"{note}.") for note in record.notes]
    notes += [
        element("li", f"Error of ours: {op.name} in {op.module or 'the model'} is faster than this machine can be.")
        for op in record.errors()
    ]
    never = None
    if silent:
        rows = [[fact.name, fact.kind, count_words(fact.parameters)] for fact in silent[:_OPS]]
        columns = [Column("Never called", "text"), Column("Kind", "text"), Column("Parameters")]
        never = panel(table("Modules that are never called", columns, rows))
    return joined(
        paragraph(conditions(record)),
        element("ul", *notes, class_="findings") if notes else None,
        card("The measured ceilings", facts),
        never,
    )
