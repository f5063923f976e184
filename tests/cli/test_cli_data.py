"""`verim data`: from files to a data set and what it says of it; mistakes are one line."""

import json
import sys
from pathlib import Path

import pytest

from verim.cli.main import main


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["data", *map(str, arguments)])
    return int(leaving.value.code or 0)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"This is text {number}, of {number * number}.\n" * 3)
    (tmp_path / "texts" / "copy").write_text((tmp_path / "texts" / "7.txt").read_text())
    return tmp_path / "texts"


def test_build_then_info(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", texts, "--out", tmp_path / "out", "--tokenizer", "bpe:280") == 0
    said = capsys.readouterr()
    assert "reading: " in said.err
    assert f"{tmp_path / 'out'}: {texts}" in said.out
    assert "tokenizer: bpe:280, 280 tokens as uint16, " in said.out
    assert "left out: 1 duplicates" in said.out
    assert run("info", tmp_path / "out") == 0
    assert capsys.readouterr().out == said.out
    assert run("info", tmp_path / "out", "--json", "--measure", "--seconds", "0.01", "--length", "8") == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["vocab"], record["duplicates"]) == (280, 1)
    assert record["train"]["documents"] + record["held_out"]["documents"] == 60
    assert record["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "{texts}"), "--out"),
        (("build", "{texts}/none", "--out", "{out}"), "none does not exist"),
        (("build", "--out", "{out}"), "paths: got none"),
        (("build", "{texts}", "--out", "{texts}"), "texts exists: remove it, or name another directory with --out"),
        (("build", "{texts}", "--out", "{out}", "--tokenizer", "bpe:10"), "tokenizer: got 'bpe:10'"),
        (("build", "{texts}", "--out", "{out}", "--tokenizer", "bpe:9000"), "ask for at most bpe:"),
        (("build", "{texts}", "--out", "{out}", "--held-out", "0.7"), "held_out: got 0.7"),
        (("info", "{texts}"), "holds no manifest.json"),
        (("info",), "DATA"),
        ((), "build"),
    ],
)
def test_mistakes_are_one_line(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    named = {"texts": texts, "out": tmp_path / "out"}
    assert run(*(argument.format(**named) for argument in arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("verim: error: ")
    assert not (tmp_path / "out").exists()


def test_a_bar_on_a_terminal(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("build", texts, "--out", tmp_path / "out") == 0
    assert "writing tokens" in capsys.readouterr().err
