"""The summary of a study on the terminal: what the page says, in a few tables."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verim.report import words
from verim.report.words import NBSP, UNKNOWN, Study, at, entries, pair

_PLAIN = (("", False), ("", False))
"""The columns of named facts."""
_COMPARED = ("Approach 3", "Kaplan")
"""Which published exponents stand beside ours: of Hoffmann et al. those of the same method. The page has them all."""


def summary(study: dict[str, Any], console: Console) -> None:
    """Prints the verdict, the winner at each budget, laws and exponents, the recommended model and its proof; then
    the rules that the runs follow, the conventions and the warnings.

    What comes from the study is printed as plain text: rich's markup and control sequences show as they are.
    """
    console.print()
    console.print(_text(words.headline(study), "bold"))
    console.print(_text(words.plan_sentence(study)))
    proof = words.proof_sentence(study)
    if proof is not None:
        console.print(_text(f"{proof[:1].upper()}{proof[1:]}."))
    for heading, table in (
        ("Ahead at each budget, in bits per byte", _verdicts(study)),
        (
            "L(N, D) = E + A/N^α + B/D^β, N non-embedding, D bytes; 90 % intervals; – where the data carry none",
            _laws(study),
        ),
        ("Notes on the laws", _notes(study)),
        ("Compute-optimal growth, N ∝ C^a and D ∝ C^b, with 90 % intervals", _growth(study)),
        ("Recommended", _plan(study)),
        ("Rules that every run follows", _table(_PLAIN, words.rules(study))),
        ("Conventions", _table(_PLAIN, _conventions(study))),
    ):
        if table.row_count:
            console.print()
            console.print(_text(heading, "bold"))
            console.print(table)
    if entries(study["warnings"]):
        console.print()
    for warning in entries(study["warnings"]):
        console.print(_text(f"Warning: {warning}", "yellow"))


def _text(value: object, style: str = "") -> Text:
    return Text(words.visible(str(value)).replace(NBSP, " "), style=style)


def _table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose second of each column says whether it holds numbers; without headings they have no line."""
    headed = any(heading for heading, _ in columns)
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=headed)
    for heading, is_number in columns:
        table.add_column(_text(heading), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    return table


def _verdicts(study: Study) -> Table:
    rows = [
        [
            words.scientific(verdict["budget"]),
            "no one" if verdict["ahead"] is None else words.title(verdict["ahead"]),
            words.number(verdict["margin_bits_per_byte"]),
            words.number(verdict["noise_bits_per_byte"]),
        ]
        for verdict in entries(study["verdicts"])
    ]
    return _table([("FLOPs", True), ("ahead", False), ("margin", True), ("noise", True)], rows)


def _laws(study: Study) -> Table:
    rows = [
        [words.title(name), *(_constant(found.get("law"), key) for key in ("E", "A", "B", "alpha", "beta"))]
        for name, found in words.architectures(study).items()
    ]
    return _table([("", False), *((sign, True) for sign in ("E", "A", "B", "α", "β"))], rows)


def _constant(law: dict[str, Any] | None, name: str) -> str:
    value, ends = at(law, name), pair(at(law, "intervals", name))
    if value is None or at(law, "identified", name) is False:
        return UNKNOWN
    shown = words.significant(value)
    return shown if ends is None else f"{shown}\n{words.significant(ends[0])} to {words.significant(ends[1])}"


def _notes(study: Study) -> Table:
    """What the fits say of themselves, above all which parameters the runs do not fix."""
    rows = []
    for name, found in words.architectures(study).items():
        notes = entries(at(found.get("law"), "notes"))
        rows += [["" if index else words.title(name), note] for index, note in enumerate(notes)]
    return _table(_PLAIN, rows)


def _growth(study: Study) -> Table:
    """The exponents measured here, and two published ones beside them."""
    rows: list[list[str]] = []
    published: dict[str, Any] = {}
    for name, found in words.architectures(study).items():
        exponents = found.get("exponents")
        if exponents is not None:
            rows.append([words.title(name), *(_exponent(*words.exponent(exponents, key)) for key in ("N", "D"))])
            published |= at(exponents, "published") or {}
    for name, growth in published.items():
        if any(known in name for known in _COMPARED):
            rows.append([name, *(words.number(at(growth, key), 2) for key in ("N", "D"))])
    return _table([("", False), ("a", False), ("b", False)], rows)


def _exponent(value: float | None, ends: tuple[float, float] | None) -> str:
    if value is None:
        return "not identified"
    return words.number(value, 2) if ends is None else f"{words.number(value, 2)} ({words.interval(ends, 2)})"


def _plan(study: Study) -> Table:
    plan = study["recommended"]
    if plan is None:
        return _table(_PLAIN, [])
    shape = f"width {plan['width'] or UNKNOWN}, depth {plan['depth'] or UNKNOWN}"
    if plan["heads"] is not None:
        shape += f", {plan['heads']} heads"
    text = f"{words.quantity(plan['tokens'], 'B')} in {words.quantity(plan['steps'])} steps"
    epochs = study.get("epochs")  # not in a study from before they were counted
    if epochs is not None:
        text += f", {words.significant(epochs, 2)} passes over the training text"
    batch = f"{words.exact(plan['batch_tokens'])} bytes in sequences of {plan['length'] or UNKNOWN}"
    predicted, between = words.number(study["predicted_bits_per_byte"]), words.interval(study["interval"])
    rows = [
        ["architecture", f"{words.title(plan['architecture'])}, {shape}"],
        [
            "parameters",
            f"{words.quantity(plan['non_embedding'])} non-embedding, {words.quantity(plan['total'])} total",
        ],
        ["text", text],
        ["batch", batch],
        ["learning rate", words.significant(plan["learning_rate"], 2)],
        ["compute", f"{words.scientific(plan['budget'])} FLOPs, {words.duration(plan['seconds'])}"],
        ["predicted", f"{predicted} bits per byte ({between})"],
        ["achieved", f"{words.number(study['achieved_bits_per_byte'])} bits per byte"],
    ]
    return _table(_PLAIN, rows)


def _conventions(study: Study) -> list[tuple[str, str]]:
    names = (("FLOPs", "flops"), ("parameters", "parameters"), ("loss", "loss"))
    told = [(name, at(study["conventions"], key)) for name, key in names]
    return [(name, sentence) for name, sentence in told if sentence is not None]
