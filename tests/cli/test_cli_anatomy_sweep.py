"""`verim anatomy sweep`: a table, one JSON object, a page; and what it refuses."""

import json
from pathlib import Path

import pytest

from verim.anatomy import Ceilings
from verim.anatomy import sweep as sweep_module
from verim.cli.main import main

TINY = ["--model", "transformer", "--width", "16", "--batch", "2", "--length", "8", "--steps", "5", "--threads", "1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's ceilings take a second to measure, and are tested elsewhere."""
    known = Ceilings("cpu", 1, {"float32": 1e15}, ((2**26, 1e15),), 1e-6)
    monkeypatch.setattr(sweep_module, "ceilings_of", lambda *_: known)


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as leaving:
        main(["anatomy", "sweep", *arguments])
    return leaving.value.code


def test_a_table_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "sweep.html"
    assert exit_code("--over", "batch", "--values", "1", "2", "4", "--html", str(page), *TINY) == 0
    said = capsys.readouterr().out
    assert "tokens/s" in said and "The backward pass takes" in said
    text = page.read_text(encoding="utf-8")
    assert (
        "transformer, width 16, over batch" in text and "At length 8 and float32." in text and text.count("<svg") == 4
    )


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--over", "dtype", "--values", "float32", "bfloat16", "--json", *TINY) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["axis"] == "dtype" and values["model"] == "transformer"
    assert [sample["value"] for sample in values["samples"]] == ["float32", "bfloat16"]
    assert all(sample["step_seconds"] > 0 for sample in values["samples"])


def test_help_and_the_list_of_verbs_tell_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    assert "usage: verim anatomy sweep" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "anatomy sweep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--over", "batch", "--values", "2", "1"], "ascending"),
        (["--over", "batch", "--values", "x"], "whole numbers"),
        (["--over", "depth"], "invalid choice"),
        (["--over", "batch", "--steps", "2"], "steps: got 2"),
        (["--over", "batch", "--threads", "0"], "--threads 0"),
        (["--over", "batch", "--html", "/nowhere/page.html"], "there is no folder /nowhere"),
        ([], "--over"),
    ],
    ids=["order", "word", "axis", "steps", "threads", "html", "none"],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
