"""`verim doctor`: plain lines, a table on a terminal, or one JSON object as the last line."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from verim.cli import doctor
from verim.cli.doctor import DoctorCommand

SUBJECTS = ["threads", "BLAS", "vectors", "Numba", "GPU", "Triton", "allocator", "memory", "disk", "cache"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIM_CACHE", str(tmp_path))


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    DoctorCommand().run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[2:] if not line.startswith("quota")] == SUBJECTS


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    DoctorCommand(json=True).run()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["machine"]["cores"] >= 1
    findings = {finding["subject"]: finding for finding in record["findings"]}
    assert set(SUBJECTS) <= findings.keys()
    assert findings["cache"]["text"] == str(tmp_path)


def test_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "Console", lambda: Console(force_terminal=True, width=60))
    DoctorCommand().run()
    output = capsys.readouterr().out
    assert "\x1b[3" in output
    assert all(len(line) < 200 for line in output.splitlines())
    assert all(subject in output for subject in SUBJECTS)
