"""The prefix sum on CUDA devices, along any axis: tiles of several lines, each scanned by all threads of a program.

A line is what is summed: entries `step` apart in memory. A program takes a tile of some lines and some entries after
the other and hands the carry on in registers. Lines that lie side by side in memory (any axis but the last) are read
and written together.

Where there are too few lines to fill the device, each is cut into spans. A first kernel sums them up, and a program
of the second one begins with the sum of the spans before its own. Memory is then read twice; a single pass, in which
programs wait for the carries of others, would add these up in an order that changes from run to run, and with it
the bits. Running sums are float64 for float32 and float64, float32 for halves, int64 for integers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from verim.ops.launch import launch, multiprocessors
from verim.ops.precision import HALVES

_TILE = 2048  # entries, 16 to a thread
_SIDE_BY_SIDE = 32  # lines of a tile that lie side by side in memory: 128 bytes of float32
_PROGRAMS = 8  # wanted on a multiprocessor
_MOST_SPANS = 1024


@triton.jit
def _place(lines, spans, LINES: tl.constexpr):
    """The first lines and the span of this program. Lines run fastest: neighbours in memory."""
    program, blocks = tl.program_id(0), tl.cdiv(lines, LINES)
    return (program % blocks).to(tl.int64) * LINES + tl.arange(0, LINES), program // blocks


@triton.jit
def _positions(line, entry, entries, step, REVERSE: tl.constexpr):
    """Where entries of lines lie: those that are `step` apart from the line's first one."""
    if REVERSE:
        entry = entries - 1 - entry
    return (line // step * entries * step + line % step)[:, None] + entry[None, :] * step


@triton.jit
def _prefix_sum_of_spans(
    x,
    sums,
    lines,
    entries,
    step,
    spans,
    span_entries,
    LINES: tl.constexpr,
    ENTRIES: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """The sums of all spans but the last, [line, span]."""
    line, span = _place(lines, spans - 1, LINES)
    total = tl.zeros([LINES], sums.dtype.element_ty)
    begin = span.to(tl.int64) * span_entries
    for first in range(0, span_entries, ENTRIES):
        entry = begin + first + tl.arange(0, ENTRIES)
        mask = (line < lines)[:, None] & (entry < entries)[None, :]
        tile = tl.load(x + _positions(line, entry, entries, step, REVERSE), mask, other=0)
        total += tl.sum(tile.to(sums.dtype.element_ty), 1)
    tl.store(sums + line * (spans - 1) + span, total, line < lines)


@triton.jit
def _prefix_sum_scan(
    x,
    sums,
    y,
    lines,
    entries,
    step,
    spans,
    span_entries,
    LINES: tl.constexpr,
    ENTRIES: tl.constexpr,
    SPANS: tl.constexpr,
    SUM: tl.constexpr,
    EXCLUSIVE: tl.constexpr,
    REVERSE: tl.constexpr,
):
    line, span = _place(lines, spans, LINES)
    carry = tl.zeros([LINES], SUM)
    if sums is not None:
        before = tl.arange(0, SPANS)
        known = (line < lines)[:, None] & (before < span)[None, :]
        carry += tl.sum(tl.load(sums + line[:, None] * (spans - 1) + before[None, :], known, other=0), 1)
    begin = span.to(tl.int64) * span_entries
    if EXCLUSIVE:
        if span == 0:
            first = tl.zeros([1], tl.int64)
            nothing = tl.zeros([LINES, 1], y.dtype.element_ty)
            tl.store(y + _positions(line, first, entries, step, REVERSE), nothing, (line < lines)[:, None])
    for start in range(0, span_entries, ENTRIES):
        entry = begin + start + tl.arange(0, ENTRIES)
        mask = (line < lines)[:, None] & (entry < entries)[None, :]
        tile = tl.load(x + _positions(line, entry, entries, step, REVERSE), mask, other=0).to(SUM)
        scanned = carry[:, None] + tl.cumsum(tile, 1)
        carry += tl.sum(tile, 1)
        if EXCLUSIVE:
            entry += 1
            mask = (line < lines)[:, None] & (entry < entries)[None, :]
        tl.store(y + _positions(line, entry, entries, step, REVERSE), scanned, mask)


def prefix_sum_forward(x: Tensor, dim: int, exclusive: bool, reverse: bool) -> Tensor:
    """The running sums of x along `dim`, contiguous; int64 for integers. Unchecked."""
    x = x.contiguous()
    y = x.new_empty(x.shape, dtype=x.dtype if x.is_floating_point() else torch.int64)
    entries, step = x.shape[dim] if x.dim() else 1, math.prod(x.shape[dim:][1:]) if x.dim() else 1
    if x.numel() == 0:
        return y
    lines = x.numel() // entries
    tile = {"LINES": min(_SIDE_BY_SIDE if step > 1 else _TILE, triton.next_power_of_2(lines))}
    tile["ENTRIES"] = min(_TILE // tile["LINES"] if step > 1 else _TILE, triton.next_power_of_2(entries))
    if step == 1:
        tile["LINES"] = max(1, min(tile["LINES"], _TILE // tile["ENTRIES"]))
    blocks, tiles = -(-lines // tile["LINES"]), -(-entries // tile["ENTRIES"])
    wanted = min(max(1, _PROGRAMS * multiprocessors(x) // blocks), _MOST_SPANS // tile["LINES"])
    span_entries = -(-tiles // min(wanted, tiles)) * tile["ENTRIES"]
    spans = -(-entries // span_entries)
    kind, sum_type = _running_sum(x.dtype)
    sums = None
    how = tile | {"REVERSE": reverse}
    if spans > 1:
        sums = x.new_empty(lines, spans - 1, dtype=kind)
        launch(_prefix_sum_of_spans, blocks * (spans - 1), x, x, sums, lines, entries, step, spans, span_entries, **how)
    how |= {"EXCLUSIVE": exclusive, "SPANS": triton.next_power_of_2(spans), "SUM": sum_type}
    launch(_prefix_sum_scan, blocks * spans, x, x, sums, y, lines, entries, step, spans, span_entries, **how)
    return y


def _running_sum(kind: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    if not kind.is_floating_point:
        return torch.int64, tl.int64
    return (torch.float32, tl.float32) if kind in HALVES else (torch.float64, tl.float64)
