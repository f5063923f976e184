"""`verim doctor`: what this machine has, and what is missing for what."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verim import __version__
from verim.anatomy import examine, machine_card

_STYLES = {"fine": "green", "absent": "yellow", "problem": "red"}


@dataclass(frozen=True)
class DoctorCommand:
    """What this machine has, and what is missing for what."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of a table."""

    def run(self) -> None:
        """Looks at the machine and prints what it finds."""
        card = machine_card()
        findings = examine(card, Path.cwd())
        if self.json:
            record = {
                "verim": __version__,
                "machine": card,
                "findings": [asdict(finding) for finding in findings],
            }
            print(json_module.dumps(record))
            return
        console = Console()
        console.print(Text(f"{card['processor']}, {card['os']}", style="bold"), soft_wrap=True)
        console.print(Text(f"Verim {__version__}, Python {card['python']}, torch {card['torch']}"))
        if not console.is_terminal:  # plain lines, for other programs
            for finding in findings:
                print(f"{finding.subject}: {finding.status}: {finding.text}")
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            style = _STYLES[finding.status]
            table.add_row(finding.subject, Text(finding.status, style=style), Text(finding.text))
        console.print(table)
