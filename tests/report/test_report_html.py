"""Escaping: whatever the text, it is text."""

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.report.html import Markup, data_block, element, escaped, joined
from verim.report.words import visible

HOSTILE = st.one_of(
    st.text(),
    st.text(st.characters(codec=None, categories=None)),  # lone surrogates and controls too
    st.sampled_from(
        [
            "</script><script>alert(1)</script>",
            "<!--<script>",
            '" onload="alert(1)',
            "' x='",
            "&lt;b&gt;",
            "]]>",
            "<",
        ]
    ),
)


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would read them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


@settings(deadline=None)
@given(HOSTILE)
def test_a_child_is_text_and_comes_back_as_it_was(text: str) -> None:
    reader = read(element("p", text))
    assert reader.tags == ["p"]
    assert reader.text == visible(text)


@settings(deadline=None)
@given(HOSTILE)
def test_an_attribute_stays_in_its_quotes(text: str) -> None:
    reader = read(element("p", "x", title=text, aria_label="kept"))
    assert reader.attributes == [("title", visible(text)), ("aria-label", "kept")]
    assert reader.text == "x"


@settings(deadline=None)
@given(HOSTILE)
def test_a_data_block_ends_only_at_its_end_and_keeps_its_value(text: str) -> None:
    block = data_block("figures", {text: [text]})
    assert block.count("</") == 1
    assert "<!--" not in block
    content = block.removeprefix('<script type="application/json" id="figures">').removesuffix("</script>")
    assert json.loads(content) == {text: [text]}


@settings(deadline=None)
@given(HOSTILE)
def test_escaped_text_can_be_written_and_holds_no_control_character(text: str) -> None:
    shown = escaped(text)
    shown.encode()
    assert all(character in "\n\t" or character.isprintable() or not character.isascii() for character in shown)


def test_markup_is_not_escaped_again_and_none_is_left_out() -> None:
    inner = element("b", "1 < 2")
    assert element("p", inner, None, " & so on") == "<p><b>1 &lt; 2</b> &amp; so on</p>"
    assert joined(inner, None) == inner
    assert isinstance(joined("a"), Markup)


def test_attributes_that_are_none_or_false_are_left_out() -> None:
    assert element("details", open=True, class_=None, hidden=False) == "<details open></details>"


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        data_block("figures", [float("nan")])
