"""Numbers in [-1, 1] as bytes: the dynamic code, fine where numbers are large and reaching over seven decades."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 256
"""Weights that share a scale."""
_DECADES = 7


@functools.cache
def code(signed: bool) -> NDArray[np.float32]:
    """The 256 numbers that bytes stand for, in rising order (Dettmers et al. 2022, arXiv 2110.02861, section 1.3).

    Decade k (0 to 6) is [0.1, 1] · 10^(k - 6), cut into 2^k equal parts (2^(k + 1) where all numbers are positive):
    the code has their middles, with both signs where `signed`; and 0 and 1.
    """
    numbers = [0.0, 1.0]
    for decade in range(_DECADES):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + (not signed)) + 1)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade + 1 - _DECADES)
        numbers += [*middles, *(-middles if signed else ())]
    return np.sort(np.array(numbers, np.float32))


@functools.cache
def bounds(signed: bool) -> NDArray[np.float32]:
    """A number's byte is how many of the first 255 bounds lie below it; the last is infinity.

    They are halfway between neighbours, but for the first of the positive code, which is 0: what is not zero, and is
    to be divided by, does not become it.
    """
    numbers = code(signed)
    halfway = (numbers[1:] + numbers[:-1]) / 2
    if not signed:
        halfway[0] = 0
    return np.append(halfway, np.float32(np.inf)).astype(np.float32)


@functools.cache
def first_guess(signed: bool) -> NDArray[np.int32]:
    """By the upper 16 bits of a float32: the byte of the least number with these bits, at most one below any of them.

    So fine are 128 steps to a power of two, where the code has 71 at most.
    """
    upper = np.arange(2**16, dtype=np.uint32) << 16
    is_negative = upper >> 31 == 1
    least = np.where(is_negative, upper | 0xFFFF, upper).astype(np.uint32).view(np.float32)
    least = np.where(np.isnan(least), np.float32(0), least)
    return np.searchsorted(bounds(signed)[:-1], least).astype(np.int32)


@functools.cache
def tables_on(device: torch.device, signed: bool) -> tuple[Tensor, Tensor]:
    """The code and its bounds (without infinity) as tensors."""
    return torch.from_numpy(code(signed)).to(device), torch.from_numpy(bounds(signed)[:-1].copy()).to(device)


def decode(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The numbers [...] that `codes` [...] (uint8) stand for: each block of 256 by its entry of `scales` [blocks]."""
    numbers, _ = tables_on(codes.device, signed)
    decoded = numbers[codes.flatten().long()] * scales.repeat_interleave(BLOCK)[: codes.numel()]
    return decoded.view(codes.shape)


def encode(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """The codes of `values` [...] and the scales: the largest magnitude of each block."""
    flat = values.flatten().float()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(1)
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    _, edges = tables_on(values.device, signed)
    codes = torch.bucketize(padded * inverse[:, None], edges).to(torch.uint8)
    return codes.flatten()[: flat.numel()].view(values.shape), scales
