"""Learning rates over the samples seen, and what all rules ask of their arguments."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError

Rate = Callable[[int], float]
"""The learning rate after so many samples."""


def constant(rate: float) -> Rate:
    """The same rate always."""
    _check_rate("constant", rate)
    return lambda seen: rate


def inverse_decay(first: float, after: float, power: float = 1.0) -> Rate:
    """`first` / (1 + samples / `after`)^`power`.

    With 1/2 < power ≤ 1 the rates sum to infinity and their squares do not, as stochastic approximation asks
    (Robbins & Monro 1951).

    >>> rate = inverse_decay(0.5, after=100)
    >>> rate(0), rate(100)
    (0.5, 0.25)
    """
    _check_rate("inverse_decay", first)
    if not (after > 0 and power >= 0):
        raise InputError(f"inverse_decay: after is {after} and power {power}, expected more than 0 and 0 or more")
    return lambda seen: first / (1 + seen / after) ** power


def as_rate(name: str, rate: float | Rate) -> Rate:
    """A number as the rate that it always is."""
    if callable(rate):
        return rate
    _check_rate(name, rate)
    return constant(rate)


def _check_rate(name: str, rate: float) -> None:
    if not (rate > 0 and math.isfinite(rate)):
        raise InputError(f"{name}: rate is {rate}, expected a positive finite number, or a function of samples seen")


def check_counts(name: str, **counts: int) -> None:
    """Refuses a count that is not at least 1, by the name of its argument."""
    for argument, count in counts.items():
        if count < 1:
            raise InputError(f"{name}: {argument} is {count}, expected at least 1")


def checked_samples(name: str, x: Tensor, features: int | None = None) -> Float[Tensor, "samples features"]:
    """`x` if it is finite float32 or float64 [samples, features], with as many features as before."""
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64) or not x.numel():
        raise InputError(
            f"{name}: x is {x.dtype} of shape {tuple(x.shape)}, expected float32 or float64 [samples, features], at "
            "least one of each"
        )
    if features is not None and x.shape[1] != features:
        raise InputError(f"{name}: x has {x.shape[1]} features, expected {features} as before")
    if not bool(x.isfinite().all()):
        raise InputError(f"{name}: x holds NaN or infinity, expected finite numbers")
    return x


def batches(x: Tensor, size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of x in an order drawn anew in each epoch, `size` at a time; each row once an epoch."""
    for _ in range(epochs):
        yield from x[torch.randperm(len(x), generator=generator).to(x.device)].split(size)
