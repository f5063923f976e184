"""The linear cross entropy on the CPU: torch's matrix products, and what lies between them in one pass.

A piece of the logits lies in a buffer of bounded size, and is turned in place into the gradient of the loss with
respect to it. There are two ways through the matrix [rows, vocab]:

- *by rows*: a piece is all logits of some rows, so that their softmax is at hand and one product gives them, two
  more both gradients. With a larger vocabulary fewer rows fit, and the weight and its gradient pass through the
  memory for each piece.
- *by tiles* of the vocabulary and the rows: the first pass gathers the maximum and the sum of each row, the second
  computes the logits again. A product more, but pieces of any shape: for the loss alone, and for large vocabularies.

Ignored rows are left out before.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.errors import InputError
from verim.ops.compiled import compiled
from verim.ops.lanes import largest_lane, load_integer, maximum, minimum, sum_of_lanes
from verim.ops.memory import address_of
from verim.ops.vectors import (
    BYTES,
    LANES,
    LOG2_E,
    add,
    divide,
    exp2,
    full,
    load_lanes,
    load_lanes_or,
    load_scalar,
    multiply,
    multiply_add,
    store_lanes,
    store_scalar,
    subtract,
)
from verim.ops.workers import run_tasks

_BUFFER = 1 << 24  # floats of a piece of all logits of some rows: 64 MiB
_LEAST_ROWS = 128  # that make such a piece worth while
_TILE_ROWS, _TILE_COLUMNS = 1024, 2048  # of the other way: 8 MiB
_BLOCK = 1024  # logits that stay in the first-level cache
_NANOSECONDS = 0.5  # of one logit, measured
_STATISTICS = 4  # of a row: the largest logit, the sum of the exponentials, the target's logit, the sum of all
_ZERO, _ONE, _LOG2_E, _LOWEST = np.float32(0), np.float32(1), np.float32(LOG2_E), np.float32(-np.inf)

# tanh(y) / y as a quotient of polynomials in y², relative error 2e-8 up to |y| = 9, where it is 1 in float32
_BEND = tuple(np.float32(c) for c in (1.33546533e-08, 2.06090756e-05, 0.00349558767, 0.133810252, 1.0))
_BEND_BELOW = tuple(np.float32(c) for c in (7.77655472e-07, 0.00032856341, 0.0258769804, 0.467143408, 1.0))
_LARGEST_BEND = np.float32(9)


def linear_cross_entropy_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """The loss of each row, and [rows, 2] with the largest logit z and the sum of exp(z - largest) of each.

    `hidden` [rows, width] and `targets` [rows]; a `softcap` of 0 is none. Both results float32, 0 in ignored rows.
    """
    rows = _Rows(hidden, targets, weight.shape[0], ignore_index)
    statistics = _gather(rows, weight, _floats(bias), softcap, label_smoothing)
    largest, logarithm = statistics[:, 0], statistics[:, 1].log()
    losses = (1 - label_smoothing) * (largest - statistics[:, 2]) + logarithm
    if label_smoothing:
        losses += label_smoothing * (largest - statistics[:, 3] / weight.shape[0])
    if z_loss:
        losses += z_loss * (largest + logarithm).square()
    return rows.spread(losses), rows.spread(statistics[:, :2].contiguous())


def linear_cross_entropy_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    normalisers: Tensor,
    dlosses: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias where asked for, else empty tensors.

    `normalisers` as `linear_cross_entropy_forward` gives them, `dlosses` [rows] the gradients of the losses.
    """
    rows = _Rows(hidden, targets, weight.shape[0], ignore_index)
    needed = for_hidden, for_weight, for_bias
    options = label_smoothing, softcap, z_loss
    return _by_tiles(rows, weight, bias, rows.of(normalisers), rows.of(dlosses), options, needed)


def linear_cross_entropy_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dlosses: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The losses, and at once the gradients for known gradients `dlosses` [rows] of them."""
    rows = _Rows(hidden, targets, weight.shape[0], ignore_index)
    size = min(_BUFFER // weight.shape[0], rows.count)
    options = ignore_index, label_smoothing, softcap, z_loss
    needed = for_hidden, for_weight, for_bias
    if weight.dtype is torch.float32 and size >= min(_LEAST_ROWS, rows.count):
        return _by_rows(rows, weight, bias, rows.of(dlosses), size, options[1:], needed)
    losses, normalisers = linear_cross_entropy_forward(hidden, weight, bias, targets, *options)
    return losses, *_by_tiles(rows, weight, bias, rows.of(normalisers), rows.of(dlosses), options[1:], needed)


class _Rows:
    """The rows that count, in float32, and the way back to all of them."""

    def __init__(self, hidden: Tensor, targets: Tensor, vocab: int, ignore_index: int) -> None:
        counted = targets != ignore_index
        self.all = len(targets)
        self.index = None if bool(counted.all()) else counted.nonzero()[:, 0]
        self.dtype = hidden.dtype
        self.targets = self.of(targets)
        self.count = len(self.targets)
        self.hidden = self.of(hidden).float()
        if self.count:
            for extreme in self.targets.aminmax():
                if not 0 <= extreme < vocab:
                    raise InputError(
                        f"linear_cross_entropy: argument targets holds {int(extreme)}, expected 0 to {vocab - 1} "
                        f"(weight has {vocab} rows) or ignore_index = {ignore_index}: give weight more rows or mask "
                        "that position with ignore_index"
                    )

    def of(self, tensor: Tensor) -> Tensor:
        """The entries of `tensor` in these rows."""
        return tensor.contiguous() if self.index is None else tensor.index_select(0, self.index)

    def spread(self, tensor: Tensor) -> Tensor:
        """The entries of these rows among all, with zeros in the others."""
        if self.index is None:
            return tensor
        return tensor.new_zeros(self.all, *tensor.shape[1:]).index_copy_(0, self.index, tensor)


def _floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _gradient(tensor: Tensor | None, needed: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Room for the gradient of `tensor`, empty where it is not asked for."""
    shape = tensor.shape if tensor is not None and needed else (0,)
    return torch.empty(shape, dtype=dtype or (torch.float32 if tensor is None else tensor.dtype), device="cpu")


def _by_rows(
    rows: _Rows,
    weight: Tensor,
    bias: Tensor | None,
    dlosses: Tensor,
    size: int,
    options: tuple[float, float, float],
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and gradients, all logits of `size` rows at a time."""
    vocab = weight.shape[0]
    added = _floats(bias)
    dhidden, dweight = _gradient(rows.hidden, needed[0]), _gradient(weight, needed[1])
    dbias = torch.zeros(vocab if needed[2] and bias is not None else 0, dtype=torch.float32, device="cpu")
    losses = torch.empty(rows.count, dtype=torch.float32, device="cpu")
    pieces = -(-rows.count // max(size, 1))
    size = -(-rows.count // max(pieces, 1))
    buffer = torch.empty(size, vocab, dtype=torch.float32, device="cpu")
    for start in range(0, rows.count, max(size, 1)):
        hidden = rows.hidden[start : start + size]
        piece = buffer[: len(hidden)]
        torch.mm(hidden, weight.t(), out=piece)
        places = [tensor[start:].data_ptr() for tensor in (rows.targets, dlosses, losses)]
        arguments = (piece.data_ptr(), vocab, address_of(added), *places, *options)
        run_tasks(_lose, len(hidden), _NANOSECONDS * piece.numel(), 0, arguments)
        if needed[0]:
            torch.mm(piece, weight, out=dhidden[start : start + size])
        if needed[1]:
            torch.addmm(dweight, piece.t(), hidden, beta=float(start > 0), out=dweight)
        if len(dbias):
            dbias += piece.sum(0)
    if needed[1] and not rows.count:
        dweight.zero_()
    dhidden = rows.spread(dhidden) if needed[0] else dhidden
    of_bias = dbias if bias is None else dbias.to(bias.dtype)
    return rows.spread(losses), dhidden.to(rows.dtype), dweight, of_bias


def _gather(rows: _Rows, weight: Tensor, bias: Tensor | None, softcap: float, smoothing: float) -> Tensor:
    """[rows, _STATISTICS] of the rows' logits."""
    statistics = torch.zeros(rows.count, _STATISTICS, dtype=torch.float32, device="cpu")
    statistics[:, 0] = -torch.inf
    for start, part, buffer in _tiles(rows, weight):
        for first in range(0, rows.count, _TILE_ROWS):
            piece = _logits(rows.hidden[first : first + _TILE_ROWS], part, buffer)
            places = rows.targets[first:].data_ptr(), statistics[first:].data_ptr()
            arguments = (piece.data_ptr(), len(part), start, address_of(bias), *places, softcap, smoothing)
            run_tasks(_gather_rows, len(piece), _NANOSECONDS * piece.numel(), 0, arguments)
    return statistics


def _by_tiles(
    rows: _Rows,
    weight: Tensor,
    bias: Tensor | None,
    normalisers: Tensor,
    dlosses: Tensor,
    options: tuple[float, float, float],
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, the logits computed anew. That of the weight is complete with each tile: it is rounded once."""
    added = _floats(bias)
    dweight, dbias = _gradient(weight, needed[1]), _gradient(bias, needed[2])
    dhidden = torch.zeros(rows.hidden.shape if needed[0] else (0,), dtype=torch.float32, device="cpu")
    for start, part, buffer in _tiles(rows, weight):
        of_part = torch.zeros(part.shape if needed[1] else (0,), dtype=torch.float32, device="cpu")
        of_bias = torch.zeros(len(part), dtype=torch.float32, device="cpu")
        for first in range(0, rows.count, _TILE_ROWS):
            hidden = rows.hidden[first : first + _TILE_ROWS]
            piece = _logits(hidden, part, buffer)
            places = [tensor[first:].data_ptr() for tensor in (rows.targets, normalisers, dlosses)]
            arguments = (piece.data_ptr(), len(part), start, len(weight), address_of(added), *places, *options)
            run_tasks(_differentiate_rows, len(piece), _NANOSECONDS * piece.numel(), 0, arguments)
            if needed[0]:
                dhidden[first : first + _TILE_ROWS].addmm_(piece, part)
            if needed[1]:
                of_part.addmm_(piece.t(), hidden)
            if needed[2]:
                of_bias += piece.sum(0)
        if needed[1]:
            dweight[start : start + len(part)] = of_part
        if needed[2]:
            dbias[start : start + len(part)] = of_bias
    return (rows.spread(dhidden) if needed[0] else dhidden).to(rows.dtype), dweight, dbias


def _tiles(rows: _Rows, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Where a tile of the vocabulary begins, its rows of `weight` in float32, a buffer for a piece of its logits."""
    buffer = torch.empty(min(rows.count, _TILE_ROWS) * min(len(weight), _TILE_COLUMNS), dtype=torch.float32)
    for start in range(0, len(weight), _TILE_COLUMNS):
        yield start, weight[start : start + _TILE_COLUMNS].float(), buffer


def _logits(hidden: Tensor, part: Tensor, buffer: Tensor) -> Tensor:
    """hidden partᵀ, in `buffer`."""
    piece = buffer[: len(hidden) * len(part)].view(len(hidden), len(part))
    return torch.mm(hidden, part.t(), out=piece)


@njit(nogil=True, error_model="numpy")
def _bend(x: Any, softcap: Any) -> Any:
    """softcap tanh(x / softcap)."""
    y = divide(x, full(softcap))
    y = minimum(full(_LARGEST_BEND), maximum(full(-_LARGEST_BEND), y))
    square = multiply(y, y)
    above, below = full(_BEND[0]), full(_BEND_BELOW[0])
    for k in range(1, len(_BEND)):
        above = multiply_add(above, square, full(_BEND[k]))
        below = multiply_add(below, square, full(_BEND_BELOW[k]))
    return multiply(full(softcap), divide(multiply(y, above), below))


@njit(nogil=True, error_model="numpy")
def _finish(row: int, columns: int, bias: int, softcap: Any) -> None:
    """Adds the bias and caps."""
    for c in range(0, columns, LANES):
        x = load_lanes(row + c * BYTES, columns - c)
        if bias != 0:
            x = add(x, load_lanes(bias + c * BYTES, columns - c))
        if softcap != 0:
            x = _bend(x, softcap)
        store_lanes(row + c * BYTES, columns - c, x)


@njit(nogil=True, error_model="numpy")
def _statistics(
    row: int, columns: int, bias: int, softcap: Any, with_all: bool, largest: Any, total: Any, everything: Any
) -> Any:
    """Adds a row's logits to its statistics. Where there is a bias or a cap, what they make of them is left there.

    Block by block: the maximum, then the exponentials under the largest so far.
    """
    for block in range(0, columns, _BLOCK):
        start, count = row + block * BYTES, min(_BLOCK, columns - block)
        if bias != 0 or softcap != 0:
            _finish(start, count, 0 if bias == 0 else bias + block * BYTES, softcap)
        lowest = full(_LOWEST)
        even = odd = lowest
        for c in range(0, count, 2 * LANES):  # two maxima and two sums: one would wait for itself
            even = maximum(load_lanes_or(start + c * BYTES, count - c, lowest), even)
            odd = maximum(load_lanes_or(start + (c + LANES) * BYTES, count - c - LANES, lowest), odd)
        before, largest = largest, max(largest, largest_lane(maximum(even, odd)))
        # where all is -inf so far, any other number stands for the maximum: exponentials are 0, or NaN
        top = largest if largest > _LOWEST else _ZERO
        under, log2_e = full(top), full(_LOG2_E)
        even = odd = full(_ZERO)
        for c in range(0, count, 2 * LANES):
            left = load_lanes_or(start + c * BYTES, count - c, lowest)
            right = load_lanes_or(start + (c + LANES) * BYTES, count - c - LANES, lowest)
            even = add(even, exp2(multiply(subtract(left, under), log2_e)))
            odd = add(odd, exp2(multiply(subtract(right, under), log2_e)))
        total = total * np.float32(math.exp(before - top)) + sum_of_lanes(add(even, odd))
        if with_all:
            even = full(_ZERO)
            for c in range(0, count, LANES):
                even = add(even, load_lanes(start + c * BYTES, count - c))
            everything += sum_of_lanes(even)
    return largest, total, everything


@njit(nogil=True, error_model="numpy")
def _differentiate(
    row: int,
    columns: int,
    target: int,
    largest: Any,
    total: Any,
    dloss: Any,
    smoothing: float,
    vocab: int,
    softcap: Any,
    z_loss: float,
) -> None:
    """Logits, with bias and cap, become the gradient. `target` counts from the first column; it may lie elsewhere."""
    logarithm = largest + np.float32(math.log(total))
    factor = full(np.float32(dloss * (1 + 2 * z_loss * logarithm) / total))
    shift = full(np.float32(-dloss * smoothing / vocab))
    top, log2_e = full(largest), full(_LOG2_E)
    here, inside, picked = row + target * BYTES, 0 <= target < columns, np.float32(dloss * (1 - smoothing))
    if inside and softcap != 0:
        bent = load_scalar(here) / softcap
        picked *= _ONE - bent * bent
    for c in range(0, columns, LANES):
        place = row + c * BYTES
        z = load_lanes(place, columns - c)
        g = multiply_add(exp2(multiply(subtract(z, top), log2_e)), factor, shift)
        if softcap != 0:
            bent = divide(z, full(softcap))
            g = multiply(g, subtract(full(_ONE), multiply(bent, bent)))
        store_lanes(place, columns - c, g)
    if inside:
        store_scalar(here, load_scalar(here) - picked)


@compiled
def _gather_rows(
    first: int,
    last: int,
    scratch: int,
    piece: int,
    columns: int,
    start: int,
    bias: int,
    targets: int,
    statistics: int,
    softcap: float,
    smoothing: float,
) -> None:
    """Compiled. Adds the logits from column `start` on to the statistics of the rows."""
    for i in range(first, last):
        row, place = piece + i * columns * BYTES, statistics + i * _STATISTICS * BYTES
        target = load_integer(targets + 8 * i) - start
        before = load_scalar(place), load_scalar(place + BYTES), load_scalar(place + 3 * BYTES)
        offset = 0 if bias == 0 else bias + start * BYTES
        largest, total, everything = _statistics(row, columns, offset, np.float32(softcap), smoothing != 0, *before)
        store_scalar(place, largest)
        store_scalar(place + BYTES, total)
        if 0 <= target < columns:
            store_scalar(place + 2 * BYTES, load_scalar(row + target * BYTES))
        store_scalar(place + 3 * BYTES, everything)


@compiled
def _differentiate_rows(
    first: int,
    last: int,
    scratch: int,
    piece: int,
    columns: int,
    start: int,
    vocab: int,
    bias: int,
    targets: int,
    normalisers: int,
    dlosses: int,
    smoothing: float,
    softcap: float,
    z_loss: float,
) -> None:
    """Compiled. The logits from column `start` on become the gradients."""
    cap = np.float32(softcap)
    for i in range(first, last):
        row, target = piece + i * columns * BYTES, load_integer(targets + 8 * i) - start
        largest, total = load_scalar(normalisers + 2 * i * BYTES), load_scalar(normalisers + (2 * i + 1) * BYTES)
        if bias != 0 or softcap != 0:
            _finish(row, columns, 0 if bias == 0 else bias + start * BYTES, cap)
        dloss = load_scalar(dlosses + i * BYTES)
        _differentiate(row, columns, target, largest, total, dloss, smoothing, vocab, cap, z_loss)


@compiled
def _lose(
    first: int,
    last: int,
    scratch: int,
    piece: int,
    vocab: int,
    bias: int,
    targets: int,
    dlosses: int,
    losses: int,
    smoothing: float,
    softcap: float,
    z_loss: float,
) -> None:
    """Compiled. All logits of a row become the gradients, while they lie in the second-level cache."""
    cap = np.float32(softcap)
    for i in range(first, last):
        row, target = piece + i * vocab * BYTES, load_integer(targets + 8 * i)
        begin = _LOWEST, _ZERO, _ZERO
        largest, total, everything = _statistics(row, vocab, bias, cap, smoothing != 0, *begin)
        z, logarithm = load_scalar(row + target * BYTES), math.log(total)
        loss = (1 - smoothing) * (largest - z) + logarithm
        if z_loss != 0:
            loss += z_loss * (largest + logarithm) ** 2
        if smoothing != 0:
            loss += smoothing * (largest - everything / vocab)
        store_scalar(losses + i * BYTES, np.float32(loss))
        dloss = load_scalar(dlosses + i * BYTES)
        _differentiate(row, vocab, target, largest, total, dloss, smoothing, vocab, cap, z_loss)
