"""A finite automaton over a whole text at once: the maps of its states to states combine."""

import torch
from jaxtyping import Int64
from torch import Tensor

from verim.errors import InputError
from verim.ops.scan import associative_scan


def run_automaton(
    transitions: Int64[Tensor, "states symbols"], text: Int64[Tensor, "*batch length"], start: int = 0
) -> Int64[Tensor, "*batch length"]:
    """The state after each symbol of `text`: state_t = transitions[state_{t-1}, text_t], state_0 = `start`.

    A symbol is a map of all states to states, a column of `transitions`. Maps compose by looking up one table in the
    other, which is associative, so that all states come from one scan (Hillis and Steele, Data Parallel Algorithms,
    1986, parsing a regular language). It does `states` times the work of a loop: for small automata.

    Raises `InputError` for tables and texts that name states or symbols which do not exist.

    >>> parity = torch.tensor([[0, 1], [1, 0]])  # state 1: an odd number of ones so far
    >>> run_automaton(parity, torch.tensor([1, 0, 1, 1]))
    tensor([1, 1, 0, 1])
    """
    if transitions.dim() != 2 or transitions.dtype is not torch.int64 or not transitions.numel():
        raise InputError(
            f"run_automaton: argument transitions is {transitions.dtype} of shape {tuple(transitions.shape)}, expected "
            "torch.int64 [states, symbols], both at least 1"
        )
    states, symbols = transitions.shape
    if text.dim() < 1 or text.dtype is not torch.int64 or text.device != transitions.device:
        raise InputError(
            f"run_automaton: argument text is {text.dtype} of shape {tuple(text.shape)} on {text.device}, expected "
            f"torch.int64 [..., length] on {transitions.device}"
        )
    _check_range("transitions", transitions, states, "states")
    _check_range("text", text, symbols, "symbols")
    if not 0 <= start < states:
        raise InputError(f"run_automaton: argument start is {start}, expected a state from 0 to {states - 1}")
    maps = transitions.t()[text]
    return associative_scan(_composed, maps, text.dim() - 1)[..., start]


def _composed(first: Tensor, then: Tensor) -> Tensor:
    return then.gather(-1, first)


def _check_range(name: str, values: Tensor, count: int, meaning: str) -> None:
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < count:
        raise InputError(
            f"run_automaton: argument {name} has values from {int(values.min())} to {int(values.max())}, expected "
            f"{meaning} from 0 to {count - 1}"
        )
