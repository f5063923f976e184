"""`verim bench`: tables, one JSON object, a record; what cannot be asked for is refused."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from verim.cli import bench
from verim.cli import main as cli
from verim.cli.bench import BenchCommand

QUICK = ("--quick", "--rounds", "1")


@pytest.fixture(autouse=True)
def same_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests of this process keep the allocator that they have."""
    monkeypatch.setattr(bench, "keep_freed_blocks", lambda: True)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["bench", *arguments])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def test_json_is_the_last_line_and_a_record_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    path = tmp_path / "RESULTS.md"
    assert run("prefix_sum", "linear_recurrence", *QUICK, "--threads", "1", "--json", "--record", str(path)) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [op["op"] for op in record["ops"]] == ["prefix_sum", "linear_recurrence"]
    assert record["threads"] == 1 and record["rounds"] == 1 and record["quick"] is True
    assert record["versions"]["torch"] == torch.__version__ and record["machine"]["cores"] >= 1
    case = record["ops"][0]["cases"][0]
    assert case["shape"] == "16384" and case["sides"][0]["name"] == "verim"
    assert case["sides"][0]["forward_ratio"] == 1.0 and case["sides"][1]["forward_seconds"] > 0
    assert case["sides"][0]["rounds"] == 1
    assert case["ceiling"]["forward"]["name"] == "memory" and case["ceiling"]["forward"]["seconds"] > 0
    assert "small shapes (--quick)" in path.read_text()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "Console", lambda: Console(width=width))
    BenchCommand(("prefix_sum",), rounds=1, quick=True).run()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.split()[:1] == ["torch.cumsum"] and len(line.split()) == 7 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "unknown op 'nonsense': expected some of prefix_sum, linear_recurrence, selective_scan, wkv"),
        (("wkv", "--threads", "0"), "--threads 0: expected 1 or more"),
        (("wkv", "--rounds", "-1"), "--rounds -1: expected 1 or more"),
        (("wkv", "--rounds", "many"), "--rounds"),
        (("wkv", "--record", "nowhere/RESULTS.md"), "--record nowhere/RESULTS.md: there is no folder nowhere"),
        (("wkv", "--record", "."), "--record . is a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and words in captured.err and captured.err.count("\n") == 1
