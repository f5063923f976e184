"""The terminal's summary: complete, plain, and deaf to markup and control sequences."""

import copy
import io
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from synthetic_study import PUBLISHED, synthetic_study
from test_report_page import STUDY, is_first, places, put

from verim.report.terminal import summary


def printed(study: dict[str, Any], width: int = 120) -> str:
    stream = io.StringIO()
    summary(study, Console(file=stream, width=width, force_terminal=False))
    return stream.getvalue()


def test_the_summary_holds_the_findings() -> None:
    text = printed(STUDY)
    for expected in (
        "Mamba is ahead by 0.13 bits per byte",
        "0.9 % better than predicted, inside the interval.",
        "3 × 10¹²",
        "Transformer",
        "0.232 to 0.310",
        "107 k non-embedding",
        "2.326 bits per byte (2.291 to 2.367)",
        "2.305 bits per byte",
        "0.43 passes over the training text",
        "1 024 bytes in sequences of 128",
        "learning rate  0.012",
        "depth     one block for every 24 channels (a synthetic rule)",
        "A multiply-add is 2 FLOPs",
        "N is non_embedding: all weights but the input embedding.",
        "Bits per byte on the held-out documents.",
    ):
        assert expected in text, expected


def test_two_published_exponents_stand_below_the_measured_ones() -> None:
    study = copy.deepcopy(STUDY)
    for found in study["architectures"].values():
        found["exponents"]["published"] = PUBLISHED | {"Someone else": {"N": 0.61, "D": 0.39}}
    lines = [line.split() for line in printed(study).splitlines()]
    assert ["Hoffmann", "et", "al.", "2022", "(Approach", "3)", "0.46", "0.54"] in lines
    assert ["Kaplan", "et", "al.", "2020", "0.73", "0.27"] in lines
    assert "Someone else" not in printed(study)


def test_an_exponent_that_the_runs_do_not_fix_is_in_words_and_the_laws_notes_are_told() -> None:
    study = copy.deepcopy(STUDY)
    mamba = study["architectures"]["mamba"]
    mamba["exponents"] |= {"identified": False, "N": {"value": 0.777, "interval": [0.66, 0.88]}}
    mamba["law"]["notes"] = ["a is free", "E is free"]
    for width in (80, 120):
        lines = [" ".join(line.split()) for line in printed(study, width).splitlines()]
        assert "Mamba not identified not identified" in lines
        assert "Mamba a is free" in lines and "E is free" in lines
        assert not any(digits in line for line in lines for digits in ("0.78", "0.66", "0.88"))


def test_a_study_from_before_rules_and_passes_were_recorded_has_a_summary() -> None:
    study = {key: value for key, value in STUDY.items() if key not in ("rules", "epochs")}
    for found in (study := copy.deepcopy(study))["architectures"].values():
        del found["exponents"]["identified"]
    text = printed(study)
    assert "passes over" not in text and "Rules" not in text and "not identified" not in text


def test_no_line_is_wider_than_the_terminal() -> None:
    for width in (80, 120):
        assert max(map(len, printed(STUDY, width).splitlines())) <= width


def test_anything_may_be_unknown_on_the_terminal_too() -> None:
    for path in places(STUDY):
        if is_first(path) and path[0] not in ("corpus", "machine", "noise", "seconds") and "runs" not in path:
            assert "None" not in printed(put(STUDY, path, None)), path


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec=None, categories=None)) | st.just("[bold red]x[/nothing]\x1b[31m\x1b]0;title\x07"))
def test_a_warning_is_printed_as_plain_text(warning: str) -> None:
    study = copy.deepcopy(STUDY) | {"warnings": [warning]}
    text = printed(study, 10_000)
    assert "\x1b" not in text and "\x07" not in text
    text.encode()


def test_markup_of_rich_is_shown_as_it_stands() -> None:
    text = printed(copy.deepcopy(STUDY) | {"warnings": ["[bold]a[/bold] [/nothing]", "\x1b[31mred"]})
    assert "Warning: [bold]a[/bold] [/nothing]" in text
    assert "Warning: ␛[31mred" in text


def test_a_narrow_terminal_and_a_single_architecture() -> None:
    study = synthetic_study(("mamba",)) | {"verdicts": []}
    assert "Mamba reached" in printed(study, 40)
