"""What every synthetic task is: fresh sequences by seed and step, a target wherever something is asked."""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from verim.errors import InputError

IGNORED = -100
"""The target of a position at which nothing is asked, as `torch.nn.functional.cross_entropy` has it."""

Batch = tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]
"""Tokens, and at each position the token that is the right answer there, or `IGNORED`.

The answer at position t follows from tokens ≤ t and is no part of the tokens: a model predicts it from its output at t.
"""


class SyntheticTask(Protocol):
    """A frozen dataclass that says how large the task is. `vocab`: tokens, answers among them."""

    @property
    def vocab(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def chance(self) -> float:
        """The expected accuracy of who answers at random among the answers that the sequence shows.

        It is what a model reaches that has learnt what is asked for but not where it stands.
        """
        ...

    def batch(self, batch: int, seed: int, step: int, held_out: bool = False) -> Batch:
        """`batch` sequences, the same for the same arguments and independent of those of any other seed or step.

        `held_out`: sequences for evaluation, drawn from a stream of random numbers of their own: no training step
        of any number comes upon them but by chance.
        """
        ...

    def at_length(self, length: int) -> "SyntheticTask":
        """The same task in sequences of `length`; as much has to be remembered. It tells extrapolation."""
        ...


def random_numbers(seed: int, step: int, held_out: bool) -> np.random.Generator:
    """The generator of one batch. Raises `InputError` for a negative seed or step."""
    if seed < 0 or step < 0:
        raise InputError(f"seed, step: got {seed}, {step}; expected neither to be negative")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(held_out), step)))


def distinct(random: np.random.Generator, rows: int, among: int, count: int) -> np.ndarray:
    """For each row `count` different numbers below `among`: every sequence of such is equally likely."""
    noise = random.random((rows, among))
    chosen = np.argpartition(noise, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(noise, chosen, axis=1), axis=1)  # within a partition numpy promises none
    return np.take_along_axis(chosen, order, axis=1)


def as_batch(tokens: np.ndarray, targets: np.ndarray) -> Batch:
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def correct(predicted: Int64[Tensor, "*rest"], targets: Int64[Tensor, "*rest"]) -> tuple[int, int]:
    """How many answers are right, and how many were asked for.

    >>> correct(torch.tensor([3, 1, 2]), torch.tensor([3, 2, IGNORED]))
    (1, 2)
    """
    asked = targets != IGNORED
    return int((predicted == targets)[asked].sum()), int(asked.sum())


def check(condition: bool, field: str, got: object, expected: str) -> None:
    """Raises `InputError` that names the field where `condition` does not hold."""
    if not condition:
        raise InputError(f"{field}: got {got}, expected {expected}")
