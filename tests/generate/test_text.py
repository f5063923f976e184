"""Streamed text is the text: no broken characters, nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verim.generate.text import ByteTokenizer, TextStream

BYTES = ByteTokenizer()


def streamed(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream, pieces = TextStream(BYTES, stop), []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.rest()], stream.stopped


@given(st.text())
def test_text_streams_in_whole_characters(text: str) -> None:
    pieces, _ = streamed(BYTES.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert pieces[-1] in ("", "\ufffd", "\ufffd\ufffd", "\ufffd\ufffd\ufffd")  # no whole character waits


@given(st.lists(st.sampled_from([0xFF, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0x41]), max_size=60))
def test_bytes_that_are_no_text_stream_as_they_decode(tokens: list[int]) -> None:
    assert "".join(streamed(tokens)[0]) == BYTES.decode(tokens)


@given(
    st.text("ab\u00e9\U0001f600", max_size=40),
    st.lists(st.text("ab\u00e9", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, stopped = streamed(BYTES.encode(text), tuple(stop))
    ends = [place for place in map(text.find, stop) if place >= 0]
    assert stopped == bool(ends)
    got = "".join(pieces)
    assert got == text if not ends else text.startswith(got)
    assert not any(string in got for string in stop)


@pytest.mark.parametrize(("text", "stop", "expected"), [("one\n\ntwo", "\n\n", "one"), ("aab", "ab", "a")])
def test_a_stop_string_over_several_tokens(text: str, stop: str, expected: str) -> None:
    assert "".join(streamed(BYTES.encode(text), (stop,))[0]) == expected


class Spaced:
    """A word a token; like SentencePiece's, decoding drops the space before the first."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


@given(st.lists(st.integers(0, 999), max_size=100))
def test_a_decoder_that_looks_at_the_beginning(tokens: list[int]) -> None:
    stream = TextStream(Spaced())
    assert "".join([stream.add(token) for token in tokens] + [stream.rest()]) == Spaced().decode(tokens)
