"""`verim claims`: lists, measures what was named, tells what failed, keeps what is done."""

import json
from pathlib import Path

import pytest

from verim.claims import AREAS, Claim, Exactly, Measurement, claims
from verim.claims.claim import REGISTRY
from verim.cli import claims as verb
from verim.cli import main as cli


@pytest.fixture(autouse=True)
def same_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests of this process keep the allocator that they have."""
    monkeypatch.setattr(verb, "keep_freed_blocks", lambda: True)


def verim_claims(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["claims", *arguments])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def no_number() -> Measurement:
    raise ArithmeticError("there is none")


def interrupted() -> Measurement:
    raise KeyboardInterrupt


def test_the_list_has_all_claims(capsys: pytest.CaptureFixture[str]) -> None:
    assert verim_claims("--json") == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["claims"]
    assert [one["id"] for one in listed] == [claim.id for claim in claims()]
    assert {"id", "area", "source", "expected", "cost", "kind"} <= set(listed[0])
    assert verim_claims("list", "--area", "scan") == 0
    told = capsys.readouterr().out
    assert AREAS["scan"] in told and AREAS["information"] not in told


def test_a_run_measures_and_writes_its_pages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    places = ["--results", str(tmp_path / "kept"), "--html", str(tmp_path / "c.html"), "--markdown"]
    (tmp_path / "README.md").write_text(
        "# Ours\n\n<!-- begin claims -->\nbefore this run\n<!-- end claims -->\n\nMore.\n"
    )
    assert verim_claims("run", "scan-depth", *places, str(tmp_path / "README.md"), "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    (result,) = said["results"]
    assert result["verdict"] == "holds" and result["claim"]["id"] == "scan-depth" and said["left_out"] == []
    assert "log₂ n" in (tmp_path / "c.html").read_text(encoding="utf-8")
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        page.startswith("# Ours") and page.endswith("More.\n") and "| holds |" in page and "before this run" not in page
    )
    assert json.loads((tmp_path / "kept" / "scan-depth.json").read_text(encoding="utf-8"))["verdict"] == "holds"


def test_a_failed_claim_is_told_and_ends_with_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Claim("fails", "scan", "one is one", "a book", Exactly(1), 1, "computed", no_number)
    monkeypatch.setitem(REGISTRY, "fails", failing)
    assert verim_claims("run", "fails", "scan-depth", "--results", str(tmp_path)) == 2
    said = capsys.readouterr()
    assert "there is none" in said.out and "2 claims: 1 holds, 1 failed" in said.out
    assert said.err.strip().endswith("could not be measured: fails; their rows say why")


def test_a_claim_that_does_not_hold_is_a_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = Claim("false", "scan", "two", "a book", Exactly(2), 1, "computed", lambda: Measurement(1.0, "here"))
    monkeypatch.setitem(REGISTRY, "false", false)
    assert verim_claims("run", "false", "--results", str(tmp_path)) == 0
    assert "does not hold here" in capsys.readouterr().out


def test_an_interrupt_keeps_and_tells_what_is_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Claim("stops", "course", "one is one", "a book", Exactly(1), 1, "computed", interrupted)
    monkeypatch.setitem(REGISTRY, "stops", stopped)
    assert verim_claims("run", "stops", "scan-depth", "--results", str(tmp_path)) == 130
    assert "left out: stops" in capsys.readouterr().out and (tmp_path / "scan-depth.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "expected ids, --area AREA, --quick or --all"),
        (["run", "scan-dep"], "did you mean scan-depth"),
        (["run", "--area", "scann"], "did you mean scan"),
        (["run", "scan-depth", "--budget", "soon"], "expected a time"),
        (["run", "scan-depth", "--fresh", "--saved"], "expected one of them"),
        (["run", "scan-depth", "--html", "no/such/folder/page.html"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert verim_claims(*arguments, "--results", str(tmp_path / "kept")) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "kept").exists()


def test_a_budget_tells_what_was_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert verim_claims("run", "scan-depth", "--budget", "0.001s", "--results", str(tmp_path)) == 0
    assert "left out: scan-depth" in capsys.readouterr().out


def test_a_page_can_be_written_again_from_what_was_saved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = ("--results", str(tmp_path / "kept"))
    assert verim_claims("run", "scan-depth", *kept) == 0
    assert verim_claims("run", "scan-depth", *kept, "--saved", "--html", str(tmp_path / "page.html")) == 0
    assert "(saved " in capsys.readouterr().out and ", saved" in (tmp_path / "page.html").read_text(encoding="utf-8")
