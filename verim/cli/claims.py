"""`verim claims`: what the literature says about efficiency, measured and judged on this machine."""

import json as json_module
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verim.claims import AREAS, LONG_SECONDS, Claim, Result, Verdict, budget_seconds, claims, run, select
from verim.errors import InputError, VerimError
from verim.recipes.results import write_section
from verim.report import words
from verim.report.claims import claims_page, found_in_words, markdown, summary
from verim.runtime.allocator import keep_freed_blocks

_STYLES = {"holds": "green", "holds under conditions": "yellow", "does not hold here": "red", "failed": "bold red"}


@dataclass(frozen=True)
class ClaimsCommand:
    """What the literature says about efficiency, measured and judged on this machine.

    verim claims lists the claims; verim claims run measures those of some ids, of areas (--area), the cheap ones
    (--quick) or --all. Verdicts: holds, holds under conditions, does not hold here, needs a GPU. A claim that does not
    hold is a result; one that cannot be measured has failed, and the command then ends with an error.
    """

    action: tyro.conf.Positional[Literal["list", "run"]] = "list"
    """list tells the claims, run measures and judges."""

    ids: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[ID ...]")] = ()
    """Which claims."""

    area: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AREA ...")] = ()
    """Which areas: scan, information, attention, linear, neuromorphic, scaling, mor, gpu, course."""

    all: bool = False
    """All claims."""

    quick: bool = False
    """Of those that were named, or of all, the cheap ones: under two minutes on two cores."""

    budget: str | None = None
    """A time, as 10m: the cheapest claims first, as many as fit; the others are named."""

    fresh: bool = False
    """Measure the long ones anew too; their saved results serve otherwise."""

    saved: bool = False
    """Take the short ones from saved results too, where there are some: to write a page again."""

    results: Path = Path("studies/claims")
    """The folder of the saved results, a file for each claim."""

    html: Path | None = None
    """A page to write: one file that opens with no network."""

    markdown: Path | None = None
    """A Markdown page whose section on claims is written anew, as docs/results/claims.md."""

    json: bool = False
    """Print one JSON object as the last line of standard output."""

    def run(self) -> None:
        """Lists, or measures and tells; what is done when it is interrupted is told and kept."""
        if self.action == "list":
            self._list()
            return
        if not (self.ids or self.area or self.all or self.quick):
            raise InputError("verim claims run: which claims is not said: expected ids, --area AREA, --quick or --all")
        if self.fresh and self.saved:
            raise InputError("--fresh --saved: expected one of them: measured anew, or read from saved results")
        budget = None if self.budget is None else budget_seconds(self.budget)
        chosen = select(self.ids, self.area, self.quick)
        for path in (self.html, self.markdown):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise InputError(f"{path} cannot be written: expected a file in a folder that is there")
        keep_freed_blocks()  # or the clock sees how the system hands out memory
        found: list[Result] = []
        try:
            self._measure(chosen, budget, found)
        finally:
            self._tell(chosen, found)
        failed = [result.claim["id"] for result in found if result.verdict == Verdict.FAILED]
        if failed:
            raise VerimError(f"could not be measured: {', '.join(failed)}; their rows say why")

    def _list(self) -> None:
        chosen = select(self.ids, self.area, self.quick) if self.ids or self.area or self.quick else claims()
        if self.json:
            print(json_module.dumps({"claims": [claim.as_json() for claim in chosen]}))
            return
        console = Console()
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("id", "claim", "expected", "takes"):
            table.add_column(heading, overflow="fold", justify="right" if heading == "takes" else "left")
        area = ""
        for claim in chosen:
            if claim.area != area:
                area = claim.area
                table.add_row(Text(f"{AREAS[area]} ({area})", style="bold"))
            cells = (claim.id, f"{claim.text} ({claim.source})", str(claim.expected), words.duration(claim.cost))
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
        console.print(Text(f"{len(chosen)} claims", style="dim"))

    def _measure(self, chosen: tuple[Claim, ...], budget: float | None, found: list[Result]) -> None:
        console = Console(stderr=True)
        saved_above = math.inf if self.fresh else 0.0 if self.saved else LONG_SECONDS
        with console.status("") as status:

            def watch(claim: Claim) -> None:
                status.update(f"{len(found) + 1} of {len(chosen)}: {claim.id}, about {words.duration(claim.cost)}")

            for result in run(chosen, self.results, budget, saved_above, watch):
                found.append(result)
                if not self.json:
                    _print(result)

    def _tell(self, chosen: tuple[Claim, ...], found: list[Result]) -> None:
        """The pages and the last lines, also of what was interrupted."""
        results = [result.as_json() for result in found]
        done = {result.claim["id"] for result in found}
        left_out = [claim.id for claim in chosen if claim.id not in done]
        if self.html is not None:
            claims_page(results, left_out, AREAS, self.html)
        if self.markdown is not None:
            write_section(self.markdown, "claims", markdown(results, left_out, AREAS), "Claims, executed")
        if self.json:
            print(json_module.dumps({"results": results, "left_out": left_out}))
            return
        print(summary(results))
        if left_out:
            print(f"left out: {', '.join(left_out)}")
        for path in (self.html, self.markdown):
            if path is not None:
                print(f"written: {path}")


def _print(result: Result) -> None:
    console = Console(soft_wrap=True, highlight=False)
    said = Text(result.verdict, style=_STYLES.get(result.verdict, "dim"))
    console.print(Text.assemble(said, "  ", (result.claim["id"], "bold"), "  ", result.claim["text"]))
    console.print(Text(f"    expected {result.claim['expected']} ({result.claim['source']})", style="dim"))
    for figure, conditions in found_in_words(result.as_json()):
        console.print(Text(f"    {figure}: {conditions}" + (f" (saved {result.date[:10]})" if result.saved else "")))
