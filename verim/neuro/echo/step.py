"""All steps of an echo state layer: a compiled walk for sparse connections on the CPU, torch for the rest."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled

_TILE = 8  # sequences that are walked side by side: a vector of float64 on AVX-512


def walk_reference(
    drive: Float[Tensor, "batch length units"],
    weights: Float[Tensor, "units units"],
    leak: float,
    state: Float[Tensor, "batch units"],
) -> Float[Tensor, "batch length units"]:
    """x_t = (1 - leak) x_{t-1} + leak tanh(W x_{t-1} + drive_t): the definition, and the way for dense weights."""
    states = torch.empty_like(drive)
    transposed = weights.T.contiguous()
    for step in range(drive.shape[1]):
        state = torch.lerp(state, torch.addmm(drive[:, step], state, transposed).tanh_(), leak)
        states[:, step] = state
    return states


def walk_sparse(
    drive: Float[Tensor, "batch length units"],
    pointers: Int[Tensor, "units+1"],
    sources: Int[Tensor, "connections"],
    weights: Float[Tensor, "connections"],
    leak: float,
    state: Float[Tensor, "batch units"],
) -> Float[Tensor, "batch length units"]:
    """The same for weights in compressed rows (a row the connections into a unit), in one compiled call."""
    states = torch.empty_like(drive)
    places = pointers.numpy().astype(np.uint64), sources.numpy().astype(np.uint32)  # unsigned: no index from the end
    floats = [part.contiguous().numpy() for part in (weights, state, states)]
    arrays = [drive.contiguous().numpy(), *places, *floats]
    kind = arrays[0].dtype.type
    if len(drive) == 1:
        _walk_one(*(part[0] if part.ndim > 1 else part for part in arrays), kind(leak))
    else:
        _walk_many(*arrays, kind(leak))
    return states


@njit(nogil=True, error_model="numpy")
def _leap(state: Any, total: Any, leak: Any, kind: Any) -> None:
    """state ← (1 - leak) state + leak tanh(total), in place, in vectors: tanh without a branch or a call.

    e = expm1(2 total), by its series at 1/64 of that and six doublings e ← e (e + 2); tanh = e / (e + 2). Right
    within a few roundings, also near 0.
    """
    kept, most = kind(1) - leak, kind(20)  # tanh(20) is 1 - 8e-18
    for i in range(len(state)):
        x = total[i]
        x = x if x < most else most
        x = x if x > -most else -most
        state[i] = kept * state[i] + leak * _tanh(x, kind)


@njit(nogil=True, inline="always")
def _tanh(x: Any, kind: Any) -> Any:
    z = x * kind(1 / 32)
    e = kind(1 / 39916800)
    e = e * z + kind(1 / 3628800)
    e = e * z + kind(1 / 362880)
    e = e * z + kind(1 / 40320)
    e = e * z + kind(1 / 5040)
    e = e * z + kind(1 / 720)
    e = e * z + kind(1 / 120)
    e = e * z + kind(1 / 24)
    e = e * z + kind(1 / 6)
    e = e * z + kind(1 / 2)
    e = e * z + kind(1)
    e = e * z
    e = e * (e + kind(2))
    e = e * (e + kind(2))
    e = e * (e + kind(2))
    e = e * (e + kind(2))
    e = e * (e + kind(2))
    e = e * (e + kind(2))
    return e / (e + kind(2))


@compiled
def _walk_one(drive: Any, pointers: Any, sources: Any, weights: Any, first: Any, states: Any, leak: Any) -> None:
    """Compiled. One sequence: [length, units]."""
    length, units = drive.shape
    kind = drive.dtype.type
    state = first.copy()
    total = np.empty_like(state)
    for t in range(length):
        for unit in range(units):
            begin, end = pointers[unit], pointers[unit + 1]
            # Four sums, so that one addition need not wait for the one before it.
            one, two, three, four = drive[t, unit], kind(0), kind(0), kind(0)
            at = begin
            while at + np.uint64(4) <= end:
                one += weights[at] * state[sources[at]]
                two += weights[at + np.uint64(1)] * state[sources[at + np.uint64(1)]]
                three += weights[at + np.uint64(2)] * state[sources[at + np.uint64(2)]]
                four += weights[at + np.uint64(3)] * state[sources[at + np.uint64(3)]]
                at += np.uint64(4)
            while at < end:
                one += weights[at] * state[sources[at]]
                at += np.uint64(1)
            total[unit] = (one + two) + (three + four)
        _leap(state, total, leak, kind)
        states[t] = state


@compiled
def _walk_many(drive: Any, pointers: Any, sources: Any, weights: Any, first: Any, states: Any, leak: Any) -> None:
    """Compiled. Sequences by tiles: a connection is read once for all of a tile, whose states lie side by side."""
    batch, length, units = drive.shape
    kind = drive.dtype.type
    flat_state = np.zeros(units * _TILE, drive.dtype)
    flat_total = np.zeros(units * _TILE, drive.dtype)
    state, total = flat_state.reshape(units, _TILE), flat_total.reshape(units, _TILE)
    for base in range(0, batch, _TILE):
        count = min(_TILE, batch - base)
        for row in range(count):
            for unit in range(units):
                state[unit, row] = first[base + row, unit]
        for t in range(length):
            for row in range(count):
                for unit in range(units):
                    total[unit, row] = drive[base + row, t, unit]
            for unit in range(units):
                # Eight sums in registers: LLVM makes one vector of them.
                a, b, c, d = total[unit, 0], total[unit, 1], total[unit, 2], total[unit, 3]
                e, f, g, h = total[unit, 4], total[unit, 5], total[unit, 6], total[unit, 7]
                for at in range(pointers[unit], pointers[unit + 1]):
                    weight, source = weights[at], sources[at]
                    a += weight * state[source, 0]
                    b += weight * state[source, 1]
                    c += weight * state[source, 2]
                    d += weight * state[source, 3]
                    e += weight * state[source, 4]
                    f += weight * state[source, 5]
                    g += weight * state[source, 6]
                    h += weight * state[source, 7]
                total[unit, 0], total[unit, 1], total[unit, 2], total[unit, 3] = a, b, c, d
                total[unit, 4], total[unit, 5], total[unit, 6], total[unit, 7] = e, f, g, h
            _leap(flat_state, flat_total, leak, kind)
            for row in range(count):
                for unit in range(units):
                    states[base + row, t, unit] = state[unit, row]
