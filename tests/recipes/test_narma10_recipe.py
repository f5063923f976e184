"""The NARMA10 recipe: below the bounds that it prints beside, with a page and a section."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from verim.errors import InputError
from verim.recipes import narma10


def test_narma10_is_below_the_bounds_that_stand_beside(tmp_path: Path) -> None:
    experiment = narma10.Experiment(tmp_path / "out", tmp_path / "neuro.md", quick=True)
    page = narma10.run(experiment, Console(quiet=True)).read_text()
    assert "linear bound" in page and "Content-Security-Policy" in page
    errors = json.loads((tmp_path / "out/result.json").read_text())["nmse"]
    assert len(errors) == 2
    for error in errors:
        assert error["states and squares"] < 0.107 < error["delay line"]
    assert "| linear bound, Appeltant et al. 2011 | 0.16 |" in (tmp_path / "neuro.md").read_text()


def test_narma10_refuses_more_units_than_the_washout() -> None:
    with pytest.raises(InputError, match="seeds and units: got 20 and 300"):
        narma10.Experiment(units=300)
