"""`verim plan`: tables, one JSON object, a plan that is trained; and what it refuses in one line."""

import json
from pathlib import Path

import pytest

from verim.cli.main import main
from verim.cli.plan import PlanCommand
from verim.data import BuildConfig, build
from verim.errors import InputError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of bytes."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"{number} is what comes after {number - 1}, and before others.\n" * 60)
    build([text], tmp_path / "data", BuildConfig())
    return tmp_path / "data"


def test_tables_say_what_and_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    PlanCommand(flops=1e20, count=4, inference_tokens=1e11, price=2.5).run()
    said = capsys.readouterr().out
    for words in ("The plan", "a parameter", "nats per token", "95 %", "kWh", "cost", "four times", "cheapest"):
        assert words in said
    assert "Layouts over 4 devices: the best 5" in said and "loses by" in said
    assert max(map(len, said.splitlines())) <= 80


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    PlanCommand(params=1e9, count=2, json=True).run()
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = "parameters tokens loss interval batch learning_rate depth width seconds memory_bytes layouts warnings law"
    assert set(f"{names} counts quarter quadruple life_cycle losers refused energy_joules cost".split()) <= set(values)
    assert values["parameters"] == pytest.approx(1e9, rel=0.1)
    for layout in values["layouts"]:
        ranks = 1
        for name in ("data", "shard", "tensor", "pipeline", "context", "expert"):
            ranks *= layout[name]
        assert ranks == 2 and layout["why"]


def test_a_plan_for_this_machine_is_trained_and_judged(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PlanCommand(flops=2e9, this_machine=True, data=data, out=tmp_path / "run", json=True).run()
    said = capsys.readouterr().out
    assert "Predicted and achieved" in said and "memory of a step" in said
    values = json.loads(said.splitlines()[-1])
    assert values["count"] == 1 and values["vocab"] == 256 and values["length"] == 128
    assert any("not of yours" in warning for warning in values["warnings"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    run = values["run"]
    assert result["tokens"] == values["tokens"]
    assert run["seconds"]["achieved"] == result["seconds"]
    for name in ("loss", "seconds", "memory_bytes"):
        figures = run[name]
        assert figures["error"] == pytest.approx(figures["predicted"] / figures["achieved"] - 1)
    assert abs(run["memory_bytes"]["error"]) < 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--flops", "1e20", "--hours", "3"], "--hours with --flops"),
        (["--flops", "1e20", "--device", "abacus"], "h100"),
        (["--flops", "1e20", "--law", "moore"], "chinchilla"),
        (["--flops", "1e20", "--law", "."], "not finished"),
        (["--flops", "1e20", "--architecture", "lisp"], "transformer, mamba"),
    ],
    ids=["two", "device", "law", "study", "architecture"],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["plan", *arguments])
    said = capsys.readouterr()
    assert leaving.value.code == 2 and said.out == ""
    assert said.err.startswith("verim: error: ") and said.err.count("\n") == 1 and words in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"this_machine": True, "device": "h100"}, "with --this-machine"),
        ({"data": Path("x")}, "without --this-machine"),
        ({"out": Path("x")}, "without --run"),
    ],
    ids=["device", "data", "out"],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PlanCommand(flops=1e9, **options).run()  # type: ignore[arg-type]
