"""The page of the mixers experiment: its tables, and what the literature says beside what was found."""

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from verim import __version__
from verim.anatomy.machine import machine_card
from verim.data.synthetic import SyntheticTask
from verim.nn.mixers import MIXERS
from verim.runtime.files import write_text

SOLVED = 0.99
"""The share of right answers from which a task counts as solved."""
EXTRAPOLATES = 0.9
"""The share of right answers at the longest length from which a mixer is said to extrapolate."""

Record = Mapping[str, Any]


class Statement(NamedTuple):
    """What the literature says of a task and some mixers."""

    task: str
    says: Literal["solved", "not solved", "extrapolated", "not extrapolated"]
    mixers: tuple[str, ...]
    source: str


LITERATURE = (
    Statement(
        "selective_copying",
        "solved",
        ("mamba", "mamba2"),
        "Gu & Dao 2023 (arXiv 2312.00752, table 1): selective scans reach 97 % and more at length 4096",
    ),
    Statement(
        "selective_copying",
        "not solved",
        ("s4d",),
        "the same table: the time-invariant S4 stays at 18 % without a gate and at 56 % in Mamba's block",
    ),
    Statement(
        "selective_copying",
        "solved",
        ("min_gru", "min_lstm"),
        "Feng et al. 2024 (arXiv 2410.01201, table 1): with three layers, hardly with one",
    ),
    Statement(
        "induction_heads",
        "solved",
        ("attention", "mamba"),
        "Gu & Dao 2023 (table 11): both at the trained length, 256",
    ),
    Statement("induction_heads", "extrapolated", ("mamba",), "the same table: to 4000 times the trained length"),
    Statement(
        "induction_heads",
        "not extrapolated",
        ("attention",),
        "the same table: with rotary positions 84 % at twice and 31 % at four times the trained length",
    ),
    Statement(
        "associative_recall",
        "solved",
        ("attention",),
        "Arora et al. 2023 (arXiv 2312.04927, figure 2): at every length, whatever the width",
    ),
    Statement(
        "parity",
        "extrapolated",
        ("rnn", "lstm"),
        "Delétang et al. 2022 (arXiv 2207.02098, table 1): both recognise the regular languages tried at any length",
    ),
    Statement(
        "parity",
        "not extrapolated",
        ("attention",),
        "the same table; Hahn 2020 (arXiv 1906.06755) shows that attention of a fixed size cannot at every length",
    ),
    Statement(
        "parity",
        "extrapolated",
        ("rwkv7",),
        "Peng et al. 2025 (arXiv 2503.14456): its transitions can track state and recognise every regular language",
    ),
    Statement(
        "parity",
        "not extrapolated",
        ("mamba", "mamba2", "min_gru", "min_lstm", "rwkv4"),
        "Grazzi et al. 2024 (arXiv 2411.12537, theorem 1): a linear recurrence whose transitions have positive "
        "eigenvalues alone cannot at finite precision",
    ),
)


_PAGE = """# Which mixer solves which task

Written by `python -m verim.recipes.mixers`; verim/recipes/mixers.py says what is trained and how.

{conditions}

Models of {depth} blocks; a block is the mixer and a SwiGLU layer of whatever the mixer leaves of 12 width² weights (a
transformer's block), so that models of a width have about the same number. AdamW and schedule of the trainer, batches
of {batch} fresh sequences, up to {steps} steps. The last {cooldown}, over which the rate falls to zero, begin as soon
as the task is solved. Widths and learning rates are tried in turn until one solves the task; what solved it is repeated
with other seeds.

## The tasks

{tasks}

Chance: of who answers at random with one of the answers that the sequence shows.

## The smallest width that solves it

Solved: at least {solved:.0f} % of the answers on held-out sequences are right; in brackets how many of the seeds did so
with the learning rate that was found. Where no width solved it: the best accuracy of all trials, and up to which width
they went.

{widths}

## At four times the trained length

Accuracy of the same models on longer sequences, the median over seeds. Parity is asked only at the positions beyond the
trained length.

{longest}

## What the literature says

Extrapolated: solved, and at least {extrapolates:.0f} % right at four times the trained length. The models here are far
smaller than those of the papers, the sequences shorter, the training a hundredth: where a mixer falls short, more width
or more steps may change it.

{literature}

## All that was found

{details}
"""


def write_page(
    path: Path, tasks: Mapping[str, SyntheticTask], settings: Mapping[str, Any], records: Sequence[Record]
) -> None:
    """Writes the page of all `records`, trials with their results, to `path`."""
    mixers = [mixer for mixer in MIXERS if any(record["mixer"] == mixer for record in records)]
    found = {}
    for task, mixer in itertools.product(tasks, mixers):
        held = [record for record in records if (record["task"], record["mixer"]) == (task, mixer)]
        if held:
            found[task, mixer] = Found(held)
    cells = {mixer: [_cells(found.get((task, mixer))) for task in tasks] for mixer in mixers}
    names = [_words(task) for task in tasks]
    text = _PAGE.format(
        conditions=_conditions(records),
        **{name: settings[name] for name in ("depth", "batch", "steps", "cooldown")},
        solved=100 * SOLVED,
        extrapolates=100 * EXTRAPOLATES,
        tasks=_table(("task", "length", "size", "chance"), [(_words(name), *_size(tasks[name])) for name in tasks]),
        widths=_table(("mixer", *names), [(mixer, *(width for width, _ in row)) for mixer, row in cells.items()]),
        longest=_table(("mixer", *names), [(mixer, *(longest for _, longest in row)) for mixer, row in cells.items()]),
        literature=_table(
            ("task", "the literature", "source", "here"),
            [_verdict(statement, found) for statement in LITERATURE if statement.task in tasks],
        ),
        details=_table(
            ("task", "mixer", "width", "parameters", "rate", "accuracy", "2×", "4×", "solved at step", "seconds"),
            [_details(task, mixer, held.best) for (task, mixer), held in found.items()],
        ),
    )
    write_text(path, text)


class Found:
    """The trials of one task and mixer."""

    def __init__(self, records: Sequence[Record]) -> None:
        first = [record for record in records if record["seed"] == 0]
        solving = [record for record in first if record["accuracy"] >= SOLVED]
        self.best = min(solving, key=lambda r: r["width"]) if solving else max(first, key=lambda r: r["accuracy"])
        self.solved, self.widest = bool(solving), max(record["width"] for record in records)
        setting = ("width", "learning_rate")
        self.seeds = [r for r in records if all(r[name] == self.best[name] for name in setting)]
        self.longest = median(record["longer"][-1] for record in self.seeds)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cells(found: Found | None) -> tuple[str, str]:
    """The smallest width, or how far it came; and the accuracy at the longest length."""
    if found is None:
        return "not run", "not run"
    if not found.solved:
        return f"{_percent(found.best['accuracy'])} (to {found.widest})", _percent(found.longest)
    right = sum(record["accuracy"] >= SOLVED for record in found.seeds)
    return f"**{found.best['width']}** ({right} of {len(found.seeds)})", _percent(found.longest)


def _verdict(statement: Statement, found: Mapping[tuple[str, str], Found]) -> tuple[str, ...]:
    """A row: what is said, and which of its mixers do so here."""
    groups: dict[str, list[str]] = {"so": [], "**not so**": [], "not run": []}
    for mixer in statement.mixers:
        held = found.get((statement.task, mixer))
        if held is None:
            groups["not run"].append(mixer)
            continue
        accuracy = held.longest if "extrapolated" in statement.says else held.best["accuracy"]
        happened = held.solved and ("extrapolated" not in statement.says or accuracy >= EXTRAPOLATES)
        group = "so" if happened != statement.says.startswith("not") else "**not so**"
        groups[group].append(f"{mixer} {_percent(accuracy)}")
    here = "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items() if names)
    return _words(statement.task), f"{statement.says}: {', '.join(statement.mixers)}", statement.source, here


def _conditions(records: Sequence[Record]) -> str:
    machine = machine_card()
    hours = sum(record["seconds"] for record in records) / 3600
    widths, rates = (sorted({record[name] for record in records}) for name in ("width", "learning_rate"))
    return (
        f"{datetime.now().astimezone().date()}, {machine['processor']}, {machine['cores']} cores, a thread a trial; "
        f"verim {__version__}, torch {machine['torch']}, numba {machine['numba']}, Python {machine['python']}. "
        f"{len(records)} trials, {hours:.2f} hours of one core; widths {', '.join(map(str, widths))}; learning rates "
        f"{', '.join(f'{rate:g}' for rate in rates)}."
    )


def _size(task: SyntheticTask) -> tuple[str, str, str]:
    sizes = {name: value for name, value in vars(task).items() if name not in ("length", "random_filler", "asked_from")}
    return str(task.length), ", ".join(f"{name} {value}" for name, value in sizes.items()), _percent(task.chance)


def _details(task: str, mixer: str, record: Record) -> tuple[str, ...]:
    shares = (record["accuracy"], *record["longer"])
    return (
        _words(task),
        mixer + ("" if record["feed_forward"] else ", no feed-forward layer"),
        str(record["width"]),
        f"{record['parameters']:,}",
        f"{record['learning_rate']:g}",
        *map(_percent, shares),
        "diverged" if record["diverged"] else str(record["solved_at"] or "–"),
        f"{record['seconds']:.0f}",
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
