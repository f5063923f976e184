"""The page of claims: a table for each area in which failures stay, with the code that measured each row."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verim.report import words
from verim.report.html import Markup, element, joined
from verim.report.parts import Column, paragraph, section, table
from verim.report.sheet import write_sheet

ClaimResult = Mapping[str, Any]

_COLUMNS = (
    Column("Claim", "text"),
    Column("Source", "text"),
    Column("Expected", "text"),
    Column("Found", "text"),
    Column("Verdict", "text"),
)
_MARKS = {"holds": "✓", "holds under conditions": "◐", "does not hold here": "✗", "needs a GPU": "–", "failed": "!"}


def claims_page(results: Sequence[ClaimResult], left_out: Sequence[str], areas: Mapping[str, str], path: Path) -> None:
    """Writes one self-contained page to `path`, whole or not at all.

    - `results`: as `verim.claims.Result.as_json` gives them; `left_out`: ids of claims without a result.
    - `areas`: the titles of the areas, in order.
    """
    sections = [paragraph(Markup(_summary_markup(results)))]
    for area, title in areas.items():
        rows = [_row(result) for result in results if result["claim"]["area"] == area]
        if rows:
            whole = table(f"Claims of {title}", _COLUMNS, rows)
            sections.append(section(title, element("div", whole, class_="panel claims")))
    if left_out:
        sections.append(section("Left out", paragraph(f"Not measured within the budget: {', '.join(left_out)}.")))
    lead = (
        "What the literature says, and what this machine says. Each row was judged by comparing the measured figure "
        "with the expected one; the lines that measured it are folded below the claim."
    )
    write_sheet(path, "Claims, executed", lead, sections, {}, "verim claims run", kind="The claims of Verim")


def summary(results: Sequence[ClaimResult]) -> str:
    """How many of each verdict, in a sentence.

    >>> summary([{"verdict": "holds"}, {"verdict": "holds"}, {"verdict": "needs a GPU"}])
    '3 claims: 2 holds, 1 needs a GPU'
    """
    counts = Counter(result["verdict"] for result in results)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _MARKS if counts[verdict])
    return f"{len(results)} claim{'s' if len(results) != 1 else ''}: {told or 'none'}"


def machine_line(results: Sequence[ClaimResult]) -> str:
    """On what and with what the results were measured: a sentence for each machine and day."""
    lines = dict.fromkeys(_machine(result) for result in results)
    return "; ".join(lines)


def markdown(results: Sequence[ClaimResult], left_out: Sequence[str], areas: Mapping[str, str]) -> str:
    """The same as a Markdown table, with machine and versions above it."""
    columns = ("claim", "source", "expected", "found", "verdict", "code")
    lines = [f"{summary(results)}. {machine_line(results)}.", ""]
    lines += [_line(columns), _line(["---"] * len(columns))]
    for area in areas:
        for result in results:
            if result["claim"]["area"] == area:
                lines.append(_line(_cells(result)))
    if left_out:
        lines += ["", f"Left out, not measured within the budget: {', '.join(left_out)}."]
    return "\n".join(lines)


def found_in_words(result: ClaimResult) -> list[tuple[str, str]]:
    """Each measured figure and its conditions; why there is none, where there is none."""
    if result["error"] is not None:
        return [("failed", result["error"])]
    several = len(result["measurements"]) > 1
    found = []
    for measurement in result["measurements"]:
        mark = ("✓ " if measurement["holds"] else "✗ ") if several else ""
        doubt = "" if measurement["decided"] else "; the interval reaches across the expected figure"
        found.append((f"{mark}{measurement['shown']}", f"{measurement['conditions']}{doubt}"))
    return found or [("–", "not measured: no CUDA device")]


def _summary_markup(results: Sequence[ClaimResult]) -> Markup:
    return joined(element("strong", f"{summary(results)}. "), machine_line(results), ".")


def _row(result: ClaimResult) -> Markup:
    claim = result["claim"]
    code = element(
        "details",
        element("summary", element("span", claim["place"], class_="mono")),
        element("pre", element("code", result["code"])),
    )
    remark = element("small", claim["remark"]) if claim["remark"] else None
    found = [
        joined(element("span", figure), element("small", conditions)) for figure, conditions in found_in_words(result)
    ]
    when = f"{result['date'][:10]}, saved" if result["saved"] else None
    kind = f"{claim['kind']}, {words.duration(result['seconds'])}"
    return element(
        "tr",
        element("th", claim["text"], remark, code, scope="row", class_="text", id=claim["id"]),
        element("td", claim["source"]),
        element("td", claim["expected"]),
        element("td", *found, element("small", joined(kind, when, between="; "))),
        element("td", f"{_MARKS[result['verdict']]} {result['verdict']}", class_="verdict"),
    )


def _machine(result: ClaimResult) -> str:
    card = result["machine"]
    devices = "".join(f", {device['name']}" for device in card["cuda"])
    return (
        f"{card['processor']}, {card['cores']} cores, {card['threads']} threads{devices}; verim {result['verim']}, "
        f"torch {card['torch']}, numba {card['numba']}, Python {card['python']}; {result['date'][:10]}"
    )


def _cells(result: ClaimResult) -> list[str]:
    claim = result["claim"]
    found = "<br>".join(f"{figure}: {conditions}" for figure, conditions in found_in_words(result))
    text = claim["text"] + (f" ({claim['remark']})" if claim["remark"] else "")
    return [
        text,
        claim["source"],
        claim["expected"],
        f"{found} ({claim['kind']})",
        result["verdict"],
        f"`{claim['place']}`",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
