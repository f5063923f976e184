"""What recipes share: figures over seeds, and a section of a page of results that each writes anew."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from verim.runtime.files import write_text


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and its standard error, 0 for a single seed."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return fmean(values), error


def percent(values: Sequence[float]) -> str:
    """Shares as "93.1 ± 0.4 %".

    >>> percent([0.5, 0.75])
    '62.5 ± 12.5 %'
    """
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f} ± {100 * error:.1f} %"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def write_section(path: Path, name: str, text: str, title: str) -> None:
    """Puts `text` between the markers of the section `name` in the Markdown file at `path`, whole or not at all.

    A new section goes to the end, a new file begins with `title`; other sections stay as they are.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    page = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n"
    if begin in page and end in page:
        page = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda found: block, page, count=1, flags=re.DOTALL)
    else:
        page = f"{page.rstrip()}\n\n{block}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
