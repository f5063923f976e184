"""The summary of a study on the terminal: what the page says, in three tables."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verim.report import words
from verim.report.words import NBSP, UNKNOWN, Study, at, entries, pair


def summary(study: dict[str, Any], console: Console) -> None:
    """Prints the verdict, the winner at each budget, laws and exponents, the recommended model and its proof.

    What comes from the study is printed as plain text: rich's markup and control sequences show as they are.
    """
    console.print()
    console.print(_text(words.headline(study), "bold"))
    console.print(_text(words.plan_sentence(study)))
    proof = words.proof_sentence(study)
    if proof is not None:
        console.print(_text(f"{proof[:1].upper()}{proof[1:]}."))
    for table in (_verdicts(study), _laws(study), _plan(study)):
        if table.row_count:
            console.print()
            console.print(table)
    for warning in entries(study["warnings"]):
        console.print(_text(f"Warning: {warning}", "yellow"))


def _text(value: object, style: str = "") -> Text:
    return Text(words.visible(str(value)).replace(NBSP, " "), style=style)


def _table(title: str, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose second of each column says whether it holds numbers."""
    table = Table(title=_text(title, "bold"), title_justify="left", box=None, pad_edge=False, header_style="dim")
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
    columns = [("FLOPs", True), ("ahead", False), ("margin", True), ("noise", True)]
    return _table("Ahead at each budget, in bits per byte", columns, rows)


def _laws(study: Study) -> Table:
    rows = []
    for name, found in words.architectures(study).items():
        law, exponents = found.get("law"), found.get("exponents")
        constants = [_constant(law, key) for key in ("E", "A", "B", "alpha", "beta")]
        growth = [_exponent(at(exponents, key)) for key in ("N", "D")]
        rows.append([words.title(name), *constants, *growth])
    columns = [(sign, True) for sign in ("E", "A", "B", "α", "β", "N ∝ C^", "D ∝ C^")]
    title = "L(N, D) = E + A/N^α + B/D^β, N non-embedding, D bytes; 90 % intervals; – where the data carry none"
    return _table(title, [("", False), *columns], rows)


def _constant(law: dict[str, Any] | None, name: str) -> str:
    value, ends = at(law, name), pair(at(law, "intervals", name))
    if value is None or at(law, "identified", name) is False:
        return UNKNOWN
    shown = words.significant(value)
    return shown if ends is None else f"{shown}\n{words.significant(ends[0])} to {words.significant(ends[1])}"


def _exponent(exponent: dict[str, Any] | None) -> str:
    value, ends = at(exponent, "value"), pair(at(exponent, "interval"))
    return words.number(value, 2) if ends is None else f"{words.number(value, 2)}\n{words.interval(ends, 2)}"


def _plan(study: Study) -> Table:
    plan = study["recommended"]
    if plan is None:
        return _table("", [], [])
    shape = f"width {plan['width'] or UNKNOWN}, depth {plan['depth'] or UNKNOWN}"
    if plan["heads"] is not None:
        shape += f", {plan['heads']} heads"
    predicted, between = words.number(study["predicted_bits_per_byte"]), words.interval(study["interval"])
    rows = [
        ["architecture", f"{words.title(plan['architecture'])}, {shape}"],
        [
            "parameters",
            f"{words.quantity(plan['non_embedding'])} non-embedding, {words.quantity(plan['total'])} total",
        ],
        ["text", f"{words.quantity(plan['tokens'], 'B')} in {words.quantity(plan['steps'])} steps"],
        ["compute", f"{words.scientific(plan['budget'])} FLOPs, {words.duration(plan['seconds'])}"],
        ["predicted", f"{predicted} bits per byte ({between})"],
        ["achieved", f"{words.number(study['achieved_bits_per_byte'])} bits per byte"],
    ]
    return _table("Recommended", [("", False), ("", False)], rows)
