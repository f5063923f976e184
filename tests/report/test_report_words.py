"""Numbers in words."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_study import synthetic_study

from verim.report import html, words
from verim.report.words import NBSP


@pytest.mark.parametrize("module", [words, html], ids=lambda module: module.__name__)
def test_examples_of_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_900, "1.00 M"),
        (14_230_000, "14.2 M"),
        (2.5e9, "2.50 G"),
    ],
)
def test_quantities_have_prefixes(value: float, text: str) -> None:
    assert words.quantity(value).replace(NBSP, " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.05, "50 ms"), (9.96, "10 s"), (59.7, "1 min"), (3599.8, "1 h"), (7260, "2 h 1 min")],
)
def test_durations_carry_over(seconds: float, text: str) -> None:
    assert words.duration(seconds).replace(NBSP, " ") == text


@settings(deadline=None)
@given(st.floats(1e-12, 1e18))
def test_a_quantity_keeps_three_significant_digits(value: float) -> None:
    text = words.quantity(value).replace(NBSP, "")
    size = next((size for size, prefix in words.PREFIXES if text.endswith(prefix)), 1.0)
    digits = text.rstrip("PTGMk")
    if "10" in digits and any(character in digits for character in "⁰¹²³⁴⁵⁶⁷⁸⁹"):
        return  # very small: a power of ten
    assert float(digits) * size == pytest.approx(value, rel=6e-3)


def test_unknown_is_a_dash_everywhere() -> None:
    for written in (
        words.number,
        words.significant,
        words.scientific,
        words.exact,
        words.quantity,
        words.duration,
        words.percent,
        words.interval,
        words.moment,
        words.title,
    ):
        assert written(None) == words.UNKNOWN


def test_a_miss_is_called_a_miss() -> None:
    study = synthetic_study()
    study |= {"achieved_bits_per_byte": 2.5, "relative_error": None}
    sentence = words.proof_sentence(study)
    assert sentence is not None
    assert sentence.replace(NBSP, " ") == "7.5 % worse than predicted, outside the interval"
