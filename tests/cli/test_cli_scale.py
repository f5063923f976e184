"""`verim scale`: a law from a file of runs, in words and as JSON; the published laws; mistakes in one line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verim.cli.main import main
from verim.scaling.laws import Law
from verim.scaling.published import EPOCH

NAMES = ("E", "A", "B", "alpha", "beta")


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["scale", *map(str, arguments)])
    return int(leaving.value.code or 0)


def law() -> Law:
    assert isinstance(EPOCH.law, Law)
    return EPOCH.law


def runs_file(path: Path, noise: float = 0.0, budgets: tuple[float, ...] = (1e19, 3e19, 1e20)) -> Path:
    """A ladder of seven sizes a budget on Epoch's surface."""
    generator = np.random.default_rng(0)
    lines = ["run,Params,Tokens,val_loss"]
    for C in budgets:
        for share in np.geomspace(0.2, 5, 7).tolist():
            N = law().optimum(C).N * share
            loss = law().loss(N, C / 6 / N) * math.exp(noise * generator.standard_normal())
            lines.append(f"run-{len(lines)},{N!r},{C / 6 / N!r},{loss!r}")
    path.write_text("\n".join(lines) + "\n")
    return path


def fitted(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert run("fit", *arguments, "--json", "--resamples", "20") == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_fit_recovers_the_surface_and_says_it_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = fitted(capsys, runs_file(tmp_path / "runs.csv"), "--budgets", "1e21", "5e19")
    assert record["law"] == pytest.approx({name: getattr(law(), name) for name in NAMES}, rel=1e-6)
    assert record["columns"] == {"parameters": "Params", "tokens": "Tokens", "loss": "val_loss", "flops": None}
    assert record["exponents"]["direct"]["a"] == pytest.approx(law().exponents.a)
    assert record["exponents"]["isoflop"]["a"] == pytest.approx(law().exponents.a, abs=0.01)
    assert record["exponents"]["envelope"] is None  # no size was trained twice
    assert [left["budget"] for left in record["leave_budget_out"]] == pytest.approx([1e19, 3e19, 1e20])
    assert all(abs(left["worst"]) < 1e-5 for left in record["leave_budget_out"])
    assert all(found["interior"] for found in record["minima"])
    assert all(abs(bias["N"]) < 0.1 for bias in record["parabola_bias"])
    assert record["fitted_range"] == pytest.approx([1e19, 1e20])
    beyond, within = record["optimum"]
    assert beyond["N"] == pytest.approx(law().optimum(1e21).N, rel=1e-5)
    assert (beyond["decades_outside"], within["decades_outside"]) == (pytest.approx(1.0), 0.0)
    assert record["warnings"] == [warning for warning in record["warnings"] if "1.0 decades above" in warning]
    assert 1 < record["conditioning"]["projected"] < record["conditioning"]["five_parameters"]


def test_the_same_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs_file(tmp_path / "runs.csv", noise=0.003)
    assert run("fit", path, "--resamples", "20", "--budgets", "1e23") == 0
    said = capsys.readouterr().out
    for words in (
        "21 runs (parameters 'Params', tokens 'Tokens', loss 'val_loss')",
        "L(N, D) = E + A/N^α + B/D^β, with 90 % intervals",
        "from the surface:   a = 0.",
        "from IsoFLOP minima: a = 0.",
        "condition number:",
        "beyond the others",
        "would misplace the optimum",
        "warning: 1e+23 FLOPs lie 3.0 decades above",
    ):
        assert words in said


def test_curves_have_an_envelope_and_clouds_no_minima(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    N = np.repeat(np.geomspace(3e7, 3e9, 12), 12)
    D = N * np.tile(np.geomspace(1, 150, 12), 12)
    rows = [{"n": n, "d": d, "loss": loss} for n, d, loss in zip(N, D, law().loss(N, D), strict=True)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = fitted(capsys, tmp_path / "runs.jsonl")
    assert record["exponents"]["envelope"]["a"] == pytest.approx(law().exponents.a, abs=0.03)
    assert record["exponents"]["isoflop"] is None and record["minima"] == [] and record["parabola_bias"] == []
    assert len(record["optimum"]) == 2 and len(record["leave_budget_out"]) == 4
    assert run("fit", tmp_path / "runs.jsonl", "--resamples", "20") == 0
    assert "from the envelope:  a = 0.5" in capsys.readouterr().out


def test_runs_that_fix_nothing_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    N = np.geomspace(1e6, 1e8, 8)
    lines = ["N,D,L", *(f"{n},{20 * n},{4 + 1e-9 * n}" for n in N)]  # a loss that only grows
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    record = fitted(capsys, tmp_path / "runs.csv")
    assert record["optimum"] == []
    assert any("has no optimum" in warning for warning in record["warnings"])
    assert not all(record["identified"].values())


def test_a_law_that_bends_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs_file(tmp_path / "runs.csv", budgets=(1e19, 3e19, 1e20))
    lines = path.read_text().splitlines()
    bent = [",".join([*line.split(",")[:3], str(1.05 * float(line.split(",")[3]))]) for line in lines[-7:]]
    path.write_text("\n".join([*lines[:-7], *bent]))
    record = fitted(capsys, path)
    assert any("fitted without the largest budget, the law is -4.8% off" in text for text in record["warnings"])


def test_the_published_laws(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("laws", "--flops", "5.76e23", "--json") == 0
    laws = {row["name"]: row for row in json.loads(capsys.readouterr().out)["laws"]}
    assert set(laws) == {"chinchilla", "epoch", "kaplan", "chinchilla-rounded"}
    assert laws["chinchilla"]["optimum"][0]["N"] == pytest.approx(40.4e9, rel=2e-3)
    assert laws["chinchilla-rounded"]["optimum"][0]["N"] == pytest.approx(32.2e9, rel=2e-3)
    assert laws["chinchilla-rounded"]["rounded"] and not laws["epoch"]["rounded"]
    assert run("laws") == 0
    said = capsys.readouterr().out
    assert "2.3 decades above the fitted range" in said and "constants rounded as printed" in said


def test_the_models_over_the_years(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--json") == 0
    models = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert models["LFM2.5 1.2B"]["tokens_per_parameter"] == pytest.approx(23_333, rel=1e-4)
    assert run("models") == 0
    assert "Chinchilla" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("N,D,L\n1e6,1e8,3\n", (), "N has 1 runs: five parameters need at least 6"),
        ("N,D\n1e6,1e8\n", (), "no column is known for loss"),
        ("N,D,L\n1e6,1e8,3\n1e6,x,3\n", (), "line 3: D is 'x'"),
        ("N,D,L\n1e6,1e8,3\n", ("--tokens", "T"), "--tokens 'T'"),
        ("N,D,L\n" + "1e6,1e8,3\n" * 8, (), "N has 1 different values"),
        ("", (), "is empty"),
    ],
)
def test_mistakes_are_one_line(
    text: str, arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.csv").write_text(text)
    assert run("fit", tmp_path / "runs.csv", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("verim: error: ") and message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "none.csv"), "No such file or directory: none.csv"),
        (("fit",), "FILE"),
        ((), "fit"),
        (("laws", "--flops", "-1"), "C is -1"),
    ],
)
def test_what_cannot_be_asked(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_budgets_and_resamples_must_be_possible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs_file(tmp_path / "runs.csv")
    assert run("fit", path, "--budgets", "0", "--resamples", "20") == 2
    assert "C is 0" in capsys.readouterr().err
    assert run("fit", path, "--resamples", "3") == 2
    assert "resamples is 3" in capsys.readouterr().err
