"""`verim study`: from a folder of text to a plan that has been checked by training it."""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from verim.cli.progress import StudyProgress
from verim.errors import InputError
from verim.report import study_page
from verim.report.terminal import summary
from verim.scaling.ray import RayWorkers
from verim.scaling.study import StudyConfig, begin, on_this_machine, run_study, stored_config


@dataclass(frozen=True)
class StudyCommand:
    """Train a ladder of small models on your text, fit the scaling laws, plan a larger run, and prove the plan.

    Without a path the corpus is the source of Python's standard library. The study's directory holds every run, the
    result (study.json) and a page (report.html); a study that was stopped goes on with --resume.
    """

    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files and folders of UTF-8 text."""
    minutes: float = 5.0
    """Minutes for the whole study, the proof included; at least 1."""
    target_minutes: float | None = None
    """Minutes of the planned run that proves the plan (a fifth of the whole where not given)."""
    architectures: Annotated[str, tyro.conf.arg(metavar="NAME,NAME")] = "transformer,mamba"
    """Architectures to compare, separated by commas."""
    seed: int = 0
    """Seed of weights and batches."""
    out: Path | None = None
    """Directory of the study (studies/DATE-TIME where not given)."""
    resume: Path | None = None
    """Go on with the study in this directory; what was asked of it then holds."""
    ray: str | None = None
    """Train on the Ray cluster at this address (HOST:PORT; all its machines see the study's directory)."""
    json: bool = False
    """Print the content of study.json as the last line."""

    def run(self) -> None:
        directory = self._directory()
        open_workers = on_this_machine if self.ray is None else partial(RayWorkers, self.ray)
        with StudyProgress(Console(stderr=True), stored_config(directory), directory) as progress:
            study = run_study(directory, progress, open_workers=open_workers)
            progress.stage("writing the page")
            study_page(study, directory / "report.html")
        console = Console()
        summary(study, console)
        console.print(f"\nPage: {directory / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
        if self.json:
            print(json.dumps(study, allow_nan=False))

    def _directory(self) -> Path:
        """The study's directory, made ready where it is new."""
        if self.resume is not None:
            if replace(self, resume=None, json=False, ray=None) != StudyCommand():
                raise InputError(
                    "resume: got other options beside it; a study goes on with what it was asked: give --resume alone, "
                    "or with --ray"
                )
            return self.resume
        config = StudyConfig(
            paths=self.paths,
            minutes=self.minutes,
            target_minutes=self.target_minutes,
            architectures=tuple(name.strip() for name in self.architectures.split(",") if name.strip()),
            seed=self.seed,
        )
        directory = self.out or Path("studies") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
        begin(config, directory)
        return directory
