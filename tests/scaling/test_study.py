"""Studies as a user runs them: the whole path on a real corpus, killed and resumed, and refused with one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_study import disturbed, numbers, study, undisturbed

from verim.errors import InputError
from verim.runs import locked
from verim.scaling.study import StudyConfig

ARCHITECTURES = "transformer,mamba"
MINUTES = 3


def refused(*options: str | Path) -> str:
    """What a study that cannot run says: one line, exit code 2."""
    result = subprocess.run(study(*options), capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("verim: error: ")
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of as few minutes as its smallest ladder allows: on a busy machine it asks for more."""
    for minutes in (MINUTES, 2 * MINUTES, 4 * MINUTES):
        directory = tmp_path_factory.mktemp("studies") / "whole"
        try:
            undisturbed(directory, ["--minutes", str(minutes), "--architectures", ARCHITECTURES])
        except subprocess.CalledProcessError as error:
            if error.returncode != 2 or "give more --minutes" not in error.stderr:
                raise AssertionError(error.stderr) from error
        else:
            return directory
    raise AssertionError("the machine is too busy for a study")


@pytest.mark.slow
def test_study_says_what_it_promises(finished: Path) -> None:
    result = json.loads((finished / "study.json").read_text())
    assert (
        result["seconds"]["total"] < 1.5 * 60 * result["options"]["minutes"]
    )  # 1.0 on a quiet machine; one that slows down may be late
    assert set(result["architectures"]) == set(ARCHITECTURES.split(","))
    assert len(result["budgets"]) >= 3
    low, high = result["interval"]
    assert low <= result["predicted_bits_per_byte"] <= high
    assert result["recommended"]["budget"] >= 3 * result["budgets"][-1] * (1 - 1e-9)
    assert 1 < result["achieved_bits_per_byte"] < 3
    assert abs(result["relative_error"]) < 0.1  # tiny budgets; a study of 5 minutes comes within 3 %
    for found in result["architectures"].values():
        assert {"law", "exponents", "runs", "minima"} <= set(found)
        assert all(1 < run["bits_per_byte"] < 8 for run in found["runs"])
    assert result["target"]["sample"]["text"]
    page = (finished / "report.html").read_text()
    assert result["corpus"]["sha256"][:12] in page


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(finished: Path, tmp_path: Path) -> None:
    killed, hit = disturbed(tmp_path / "killed", finished, kills=4, seed=1)
    assert hit >= 3
    assert numbers(killed) == numbers(json.loads((finished / "study.json").read_text()))


@pytest.mark.slow
def test_a_finished_study_is_read_not_run(finished: Path) -> None:
    before = (finished / "study.json").read_bytes()
    result = subprocess.run(study("--resume", finished, "--json"), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert json.loads(result.stdout.splitlines()[-1]) == json.loads(before)
    assert (finished / "study.json").read_bytes() == before


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    assert "nowhere" in refused(tmp_path / "nowhere", "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_tiny_and_empty_corpora_say_how_much_is_needed(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "empty.txt").write_text("")
    assert "no text" in refused(tmp_path / "texts", "--out", tmp_path / "study")
    (tmp_path / "texts" / "tiny.txt").write_text("to be or not to be\n" * 50 + "that is the question\n" * 40)
    (tmp_path / "texts" / "more.txt").write_text("whether 'tis nobler\n" * 200)
    assert "200,000 are needed" in refused(tmp_path / "texts", "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--minutes", "0.5"], "minutes: got 0.5, expected at least 1"),
        (["--minutes", "nan"], "minutes: got nan"),
        (["--architectures", "transformer,perceptron"], "'perceptron', expected some of transformer, mamba"),
        (["--architectures", "mamba,mamba"], "expected each name once"),
        (["--architectures", ","], "architectures: got none"),
        (["--minutes", "2", "--target-minutes", "2"], "target-minutes: got 2 of 2"),
        (["--seed", "-1"], "seed: got -1"),
    ],
)
def test_impossible_options(options: list[str], says: str, tmp_path: Path) -> None:
    assert says in refused(*options, "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_directories_that_are_not_studies_or_not_empty(tmp_path: Path) -> None:
    assert "holds no study" in refused("--resume", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "not empty" in refused("--out", tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["letter.txt"]
    assert "give --resume alone" in refused("--resume", tmp_path, "--out", tmp_path / "other")


def test_a_study_that_another_process_is_at(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"minutes": 2, "paths": [], "architectures": ["mamba"]}))
    with locked(tmp_path):
        assert "in use by another process" in refused("--resume", tmp_path)
    assert (tmp_path / "config.json").exists()


def test_configuration_is_checked_in_python_too() -> None:
    with pytest.raises(InputError, match="architectures: got 'x'"):
        StudyConfig(architectures=("x",))


def test_commands_use_this_python() -> None:
    assert study("--json")[0] == sys.executable
