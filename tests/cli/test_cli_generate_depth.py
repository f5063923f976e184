"""`verim generate` says how deep the tokens of a Mixture-of-Recursions went."""

import json
import re
from pathlib import Path

import pytest
import torch

from verim.cli import generate
from verim.cli import main as cli
from verim.models import LanguageModel, architecture_config
from verim.runs import RunDirectory


def run_of(path: Path, architecture: str) -> Path:
    torch.manual_seed(0)
    model = LanguageModel(architecture_config(architecture, 16))
    torch.nn.init.normal_(model.head.weight, std=0.5)
    if model.routed is not None:
        torch.nn.init.normal_(model.routed.router.score.weight)
    run = RunDirectory(path)
    with run.writing():
        run.start({"model": model.config.to_json()})
        run.save_checkpoint(1, {f"model.{name}": value for name, value in model.state_dict().items()}, {})
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["generate", *map(str, arguments)])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, *capsys.readouterr()


def test_depths_are_told_shown_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "keep_freed_blocks", lambda: True)
    asked = (run_of(tmp_path / "mor", "mor"), "--prompt", "<b>", "--max-tokens", 12, "--endless")
    code, out, _ = said(capsys, *asked, "--json")
    record = json.loads(out.splitlines()[-1])
    depths = record["completions"][0]["depths"]
    assert code == 0 and len(depths) == 12 and set(depths) <= {1, 2}
    assert record["mean_depth"] == sum(depths) / 12
    page = tmp_path / "page.html"
    code, out, err = said(capsys, *asked, "--show-depth", "--depth-page", page)
    assert code == 0 and f"mean depth {record['mean_depth']:.2f}" in err
    assert (
        re.sub(r"\x1b\[[0-9;]*m", "", out).strip("\n") == record["completions"][0]["text"].strip("\n")
        and "\033[48;5;" in out
    )
    written = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;" in written and written.count("<span") >= 12 and "http" not in written.replace("http-equiv", "")


def test_a_model_of_one_depth_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, run_of(tmp_path / "plain", "transformer"), "--prompt", "a", "--show-depth")
    assert code == 2 and "--show-depth: all tokens of" in err
