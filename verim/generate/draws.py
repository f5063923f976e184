"""Random numbers that follow from a seed and a position alone, for many seeds at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEP = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_BLOCK = 64


def uniforms(seeds: Int[Tensor, "rows"], first: Int[Tensor, "rows"], count: int) -> Float[Tensor, "rows count"]:
    """Numbers `first` to `first` + `count` - 1 of each seed's sequence, in float64, evenly spread over [0, 1).

    SplitMix64 (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195, figure 14), which passes BigCrush: number n of
    a sequence is mix(start + (n + 1) · γ). A sequence starts at mix(seed + γ), so that those of seeds side by side lie
    far apart. 52 bits are kept: u · total < total then holds for every float64 total.
    """
    number = torch.arange(1, count + 1, device=seeds.device) + first[:, None]
    mixed = _mix(_mix(seeds + _STEP)[:, None] + number * _STEP)
    return _shifted(mixed, 12).double() * 2.0**-52


def _mix(value: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        value = (value ^ _shifted(value, shift)) * factor
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left: torch repeats the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


class Draws:
    """The next number of each row, again and again; rows stand at positions of their own."""

    def __init__(self, seeds: Sequence[int], first: Sequence[int], device: torch.device) -> None:
        self._seeds, self._first = torch.tensor(seeds, device=device), torch.tensor(first, device=device)
        self._block: Tensor | None = None
        self._column = 0

    def next(self) -> Float[Tensor, "rows 1"]:
        """One number a row."""
        if self._block is None or self._column == _BLOCK:  # many at once: the work is in the calls
            self._first = self._first + self._column
            self._block, self._column = uniforms(self._seeds, self._first, _BLOCK), 0
        self._column += 1
        return self._block[:, self._column - 1 : self._column]
