"""A recipe as a command: its options are the fields of its experiment, its end the page that it wrote."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro
from rich.console import Console

from verim.errors import VerimError

Experiment = TypeVar("Experiment")


def run_command(
    experiment: type[Experiment],
    run: Callable[[Experiment, Console], Path],
    program: str,
    arguments: Sequence[str] | None,
) -> None:
    """Runs what `arguments` (by default the process's) ask for; an error is said in a line, with exit code 2."""
    console = Console()
    try:
        page = run(tyro.cli(experiment, prog=program, args=arguments), console)
    except VerimError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    console.print(f"written: {page}", highlight=False, soft_wrap=True)
