"""The terminal's summary: complete, plain, and deaf to markup and control sequences."""

import copy
import io
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from synthetic_study import synthetic_study
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
    ):
        assert expected in text, expected


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
