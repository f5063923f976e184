"""The ledger on a terminal: the step's parts, what it waits for, the dearest ops and modules, the memory."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verim.anatomy.ledger import Bound, Module, Op, Record
from verim.anatomy.memory import Memory
from verim.anatomy.words import count_words, size_words, time_words

_OPS = 12
_MODULES = 12
_BAR = 12
_WIDE = 108  # columns
_WORDS = {"compute": "arithmetic", "memory": "memory", "launch": "launches and Python between ops"}


def print_ledger(record: Record, console: Console) -> None:
    """Prints it all, as plain text where `console` is no terminal."""
    console.print(Text(headline(record), style="bold"), soft_wrap=True)
    console.print()
    _print(console, "Parts of the step", _parts(record))
    _print(console, f"Ops, the {_OPS} that take longest", _ops(record, console.width))
    _print(console, "Modules, with what lies in them", _modules(record))
    _print(console, memory_line(record.memory), _memory(record.memory))
    for op in record.errors():
        where = op.module or "the model"
        text = f"Error of ours: {op.name} in {where} is faster than this machine can be: a count or a ceiling is wrong."
        console.print(Text(text, style="red"))
    for note in record.notes:
        console.print(Text(f"Note: {note}.", style="yellow"), soft_wrap=True)
    console.print(Text(conditions(record), style="dim"), soft_wrap=True)


def headline(record: Record) -> str:
    """The step in a sentence."""
    waits = record.bound_seconds()
    total = sum(waits.values())
    shares = ", ".join(
        f"{share:.0%} {_WORDS[name]}"
        for name, seconds in sorted(waits.items(), key=lambda item: -item[1])
        if total and (share := seconds / total) >= 0.005
    )
    step = f"A step takes {time_words(record.step_seconds)}"
    if not record.flops:
        return f"{step}; it waits for: {shares}." if shares else f"{step}."
    return f"{step}, at {record.utilisation:.1%} of the measured peak; it waits for: {shares}."


def conditions(record: Record) -> str:
    """What the figures rest on."""
    counts, overhead = record.counts, record.overhead
    text = (
        f"{record.device}, threads: {record.ceilings.threads}. Steps, taking turns: {counts.unrecorded} unrecorded, "
        f"{counts.parts} with parts timed, {counts.ops} with every op seen."
    )
    if overhead.parts is not None:
        text += f" Recording parts costs {overhead.parts:+.1%}"
        text += f", seeing every op {overhead.ops:+.0%} (op times are scaled to the parts)." if overhead.ops else "."
    return text


def memory_line(memory: Memory) -> str:
    """The highest point of the memory in a sentence."""
    said = "predicted" if memory.source == "predicted" else "in tensors"
    where = f"{memory.peak_op} of {memory.peak_module}" if memory.peak_module else memory.peak_op
    line = f"Memory: {size_words(memory.peak_bytes)} at most {said}, in {memory.peak_part} ({where})"
    if memory.allocator_peak_bytes is not None:
        line += f"; {size_words(memory.allocator_peak_bytes)} by the allocator's records"
    return line


def _print(console: Console, heading: str, table: Table) -> None:
    if table.row_count:
        console.print(Text(heading, style="bold"), soft_wrap=True)
        console.print(table)
        console.print()


def _table(columns: Sequence[str], words: int = 1) -> Table:
    """A table whose first columns hold words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < words else "right", no_wrap=True, overflow="ellipsis")
    return table


def _parts(record: Record) -> Table:
    table = _table(("part", "time", "share", "", "FLOPs", "bytes", "between ops"))
    sums = record.grouped(lambda op: op.part)
    step = record.step_seconds
    for part in record.parts:
        inside = sums.get(part.name)
        bar = Text("█" * round(_BAR * part.seconds / step) if step else "", style="cyan")
        cells = (
            ("", "", "")
            if inside is None
            else (count_words(inside.flops), size_words(inside.bytes), time_words(inside.overhead_seconds))
        )
        table.add_row(part.name, time_words(part.seconds), f"{part.seconds / step:.1%}", _left(bar), *cells)
    remainder = record.remainder_seconds
    style = "" if record.closes else "yellow"
    table.add_row("remainder", time_words(remainder), f"{remainder / step:.1%}", "", "", "", "", style=style)
    table.add_row("step", time_words(step), "100.0%", style="bold")
    return table


def _left(text: Text) -> Text:
    text.justify = "left"
    return text


def _ops(record: Record, width: int) -> Table:
    """The dearest ops of each part; rates where there is room for them."""
    rates = ("FLOP/s", "bytes/s") if width >= _WIDE else ()
    table = _table(("op", "part", "calls", "time", "share", *rates, "FLOPs/B", "of peak", "bound by"), 2)
    for (name, part), op in list(record.grouped(lambda op: (op.name, op.part)).items())[:_OPS]:
        seconds = op.seconds or 1e-12
        alike = [single for single in record.ops if (single.name, single.part) == (name, part)]
        least = sum(single.fraction_of_peak(record.ceilings) * single.seconds for single in alike)
        table.add_row(
            name.removeprefix("aten."),
            part,
            f"{op.calls:g}",
            time_words(op.total_seconds),
            f"{op.total_seconds / record.step_seconds:.1%}",
            *((count_words(op.hardware_flops / seconds), size_words(op.bytes / seconds)) if rates else ()),
            f"{op.intensity:.3g}",
            f"{least / seconds:.0%}" if op.bytes else "–",
            _mostly(alike, record),
        )
    return table


def _mostly(ops: Sequence[Op], record: Record) -> Bound:
    """What most of their time is bound by."""
    seconds: dict[Bound, float] = {}
    for op in ops:
        bound = op.bound_by(record.ceilings)
        seconds[bound] = seconds.get(bound, 0.0) + op.total_seconds
    return max(seconds, key=lambda name: seconds[name])


def _modules(record: Record) -> Table:
    """The tree down to what is worth a line; equal modules of one parent in a row are summed."""
    table = _table(("module", "time", "share", "FLOPs", "parameters"))
    lines = [
        (depth, module)
        for depth, module in _walk(record.modules())
        if module.total_seconds >= 0.01 * record.step_seconds and depth
    ]
    for depth, module in sorted(lines, key=lambda line: -line[1].total_seconds)[:_MODULES]:
        name = Text(f"{module.name}  ", style="bold" if depth == 1 else "")
        name.append(module.kind, style="dim")
        own = sum(below.parameters for below in module.walk())
        share = f"{module.total_seconds / record.step_seconds:.1%}"
        table.add_row(name, time_words(module.total_seconds), share, count_words(module.flops), count_words(own))
    return table


def _walk(module: Module, depth: int = 0) -> Iterable[tuple[int, Module]]:
    yield depth, module
    for child in module.children:
        yield from _walk(child, depth + 1)


def _memory(memory: Memory) -> Table:
    table = _table(("category", "at the peak", "share"))
    for name, size in sorted(memory.at_peak.items(), key=lambda item: -item[1]):
        table.add_row(name, size_words(size), f"{size / memory.peak_bytes:.1%}")
    return table
