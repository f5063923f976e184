"""The liquids' recipes: that each runs, says what it found, and is on the list."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from verim.cli.main import main
from verim.errors import InputError
from verim.recipes import liquid_digits, liquid_memory, liquid_templates, recipes, run_recipe
from verim.recipes.results import mean_and_error, write_section

QUIET = Console(quiet=True)


def test_templates_are_told_by_the_liquid_and_the_page_shows_it(tmp_path: Path) -> None:
    experiment = liquid_templates.Experiment(tmp_path / "out", tmp_path / "neuro.md", quick=True)
    page = liquid_templates.run(experiment, QUIET).read_text()
    assert "Same template or not" in page and "Content-Security-Policy" in page
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["accuracy"][0]["delay line"]["first"] > 0.9
    assert [found["strength"] for found in result["strengths"]] == [0.0, 2.0]
    assert "## Jittered spike templates" in (tmp_path / "neuro.md").read_text()


def test_same_or_not_needs_more_than_a_delay_line() -> None:
    scores = liquid_templates.classify(liquid_templates.Experiment(seeds=1, samples=400), 0)
    assert scores["liquid"]["same or not"] > 0.75 > 0.6 > scores["delay line"]["same or not"]


def test_memory_is_asked_for_the_right_bits(tmp_path: Path) -> None:
    bits = torch.tensor([1, 0, 1, 1, 0, 0, 1])
    assert liquid_memory.answers(bits, "bit")[2][2:].tolist() == [1, 0, 1, 1, 0]
    assert liquid_memory.answers(bits, "parity")[1][2:].tolist() == [1, 1, 0, 1, 0]
    experiment = liquid_memory.Experiment(tmp_path / "out", tmp_path / "neuro.md", quick=True)
    assert liquid_memory.run(experiment, QUIET).exists()
    (scores,) = json.loads((tmp_path / "out/result.json").read_text())["accuracy"]
    assert scores["delay line"]["bit"] == pytest.approx([1.0] * 6, abs=0.02)
    assert scores["liquid"]["parity"][0] > 0.85


def test_cepstra_become_the_spectrum_they_are_of() -> None:
    """A spectrum of one cosine over the bands comes back from its cepstrum; what is over is silent."""
    cepstra = torch.zeros(3, 13)
    cepstra[:, 1] = 40.0
    window = liquid_digits.loudness(cepstra, [2, 1])
    assert window[0, :2].diff(dim=1).max() <= 0 and window[0, 0, 0] == 1
    assert not window[0, 2:].any() and not window[1, 1:].any()
    assert liquid_digits.quarters(window).shape == (2, 80)


def test_digits_without_their_recordings_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liquid_digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'verim\[speech\]'"):
        liquid_digits.recordings()


def test_digits_are_read_from_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up recordings: a digit's loudness rises in channels of its own."""
    generator = torch.Generator().manual_seed(0)
    digits = torch.arange(300) % 10
    window = 0.2 * torch.rand(300, 32, 20, generator=generator)
    for digit in range(10):
        window[digits == digit, :20, 2 * digit : 2 * digit + 2] += 0.7
    monkeypatch.setattr(liquid_digits, "recordings", lambda: (window, digits))
    experiment = liquid_digits.Experiment(tmp_path / "out", tmp_path / "neuro.md", quick=True)
    assert liquid_digits.run(experiment, QUIET).exists()
    (scores,) = json.loads((tmp_path / "out/result.json").read_text())["accuracy"]
    assert scores["liquid"] > 0.9 and scores["delay line, all frames"] > 0.9


def test_sections_are_replaced_and_others_kept(tmp_path: Path) -> None:
    page = tmp_path / "results" / "page.md"
    write_section(page, "one", "first\\1", "Title")
    write_section(page, "two", "second", "Title")
    write_section(page, "one", "third", "Title")
    text = page.read_text()
    assert text.startswith("# Title\n") and text.index("third") < text.index("second") and "first" not in text


def test_standard_errors() -> None:
    assert mean_and_error([1.0]) == (1.0, 0.0)
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)


def test_recipes_are_listed_and_unknown_ones_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"mixers", "liquid-templates", "liquid-memory", "liquid-digits"} <= recipes().keys()
    assert "mixers-page" not in recipes() and all(recipes().values())
    with pytest.raises(SystemExit) as leaving:
        main(["recipe", "list"])
    assert leaving.value.code == 0
    assert "liquid-memory" in capsys.readouterr().out
    with pytest.raises(SystemExit) as leaving:
        main(["recipe", "run", "none"])
    assert leaving.value.code == 2
    assert "unknown recipe 'none'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        main(["recipe", "run"])
    assert leaving.value.code == 2


def test_options_after_the_name_are_the_recipes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(liquid_memory, "main", given.append)
    run_recipe("liquid-memory", ("--seeds", "2"))
    with pytest.raises(SystemExit) as leaving:
        main(["recipe", "run", "liquid-memory", "--quick"])
    assert leaving.value.code == 0
    assert given == [["--seeds", "2"], ["--quick"]]
    assert sys.modules["verim.recipes.liquid_memory"] is liquid_memory
