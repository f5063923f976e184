"""Source code cut into tokens by a finite automaton that runs over all of it at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from verim.ops.scan.applications.automata import run_automaton
from verim.ops.scan.applications.sorting import compact

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_" + bytes(range(128, 256))
_DIGITS, _SPACES, _ALL = b"0123456789", b" \t\r\n", bytes(range(256))
_LINE = _ALL.replace(b"\n", b"")

# A state is the kind of the token that the text is in, with as much of its spelling as decides how it may go on.
_BETWEEN, _NAME, _NUMBER, _FRACTION, _SPACE, _COMMENT, _OPEN, _CLOSED, _RELATION, _OPERATOR = range(10)
_KINDS = ("", "name", "number", "number", "space", "comment", "unclosed", "string", "operator", "operator")
_BEGINS = (  # later lines overrule earlier ones
    (_ALL, _OPERATOR),
    (_LETTERS, _NAME),
    (_DIGITS, _NUMBER),
    (_SPACES, _SPACE),
    (b"#", _COMMENT),
    (b'"', _OPEN),
    (b"=<>!", _RELATION),
)
_GOES_ON = (
    (_NAME, _LETTERS + _DIGITS, _NAME),
    (_NUMBER, _DIGITS, _NUMBER),
    (_NUMBER, b".", _FRACTION),
    (_FRACTION, _DIGITS, _FRACTION),
    (_SPACE, _SPACES, _SPACE),
    (_COMMENT, _LINE, _COMMENT),
    (_OPEN, _LINE, _OPEN),
    (_OPEN, b'"', _CLOSED),
    (_RELATION, b"=", _OPERATOR),
)


class Token(NamedTuple):
    """`kind`: name, number, string, unclosed (a string without its end), operator, space or comment."""

    kind: str
    text: str


def tokenize(source: str) -> list[Token]:
    """The tokens of simple source code, the longest possible from left to right; joined they are the source again.

    Names are of letters, digits and _ (all beyond ASCII are letters), numbers like 12 and 1.5, strings stand between
    double quotes on a line, comments go from # to the end of the line, operators are one character or one of
    == <= >= !=.

    Every beginning of a token is a token, so one automaton finds them all: where no transition goes on with a token,
    one leads into the next. It runs over the whole text as one scan (`run_automaton`), and the places where tokens
    begin are moved together by another (`compact`).

    >>> [token.text for token in tokenize("y1 <= 2.5*x")]
    ['y1', ' ', '<=', ' ', '2.5', '*', 'x']
    """
    text = source.encode(errors="surrogatepass")
    if not text:
        return []
    symbols = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    transitions, begins = _tables()
    states = run_automaton(transitions, symbols, _BETWEEN)
    before = torch.cat([states.new_full((1,), _BETWEEN), states[:-1]])
    starts = compact(torch.arange(len(text)), begins[before, symbols]).tolist()
    ends = [*starts[1:], len(text)]
    return [
        Token(_KINDS[state], text[start:end].decode(errors="surrogatepass"))
        for start, end, state in zip(starts, ends, states[torch.tensor(ends) - 1].tolist(), strict=True)
    ]


def _tables() -> tuple[Tensor, Tensor]:
    """For each state and byte the next state, and whether the byte begins a token."""
    transitions = torch.empty(len(_KINDS), 256, dtype=torch.int64)
    begins = torch.ones(len(_KINDS), 256, dtype=torch.bool)
    for characters, state in _BEGINS:
        transitions[:, list(characters)] = state
    for state, characters, following in _GOES_ON:
        transitions[state, list(characters)] = following
        begins[state, list(characters)] = False
    return transitions, begins
