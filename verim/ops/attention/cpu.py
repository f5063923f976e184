"""Attention on the CPU: a task is one head of one sequence, and everything about it stays in the cache.

Queries come 32 at a time, a position to a lane, channels along memory ("transposed"). Then the scores of a key are
one vector of 32, made of sums over channels with the key's numbers broadcast; the softmax runs lane by lane with no
sum across lanes; and rotating a pair of channels is two vector operations. For the causal mask, tiles of keys
beyond the last query of a tile are not visited. The largest score and the reciprocal sum of each query are kept;
the backward pass recomputes the probabilities P from them, tile by tile. With G the gradient of the output:

    dP = G Vᵀ     dS = P ⊙ (dP - rowsum(P ⊙ dP))     dQ = dS K     dK = dSᵀ Q     dV = Pᵀ G

Scores carry the factor log2(e), so that exp2 serves; it is taken out of dQ and dK at the end.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.attention.tiled import tiled_attention_backward, tiled_attention_forward
from verim.ops.lanes import maximum, transpose
from verim.ops.precision import widen
from verim.ops.tiles import (
    TILE,
    TILE_ROW,
    add_rows_of_tile,
    product_of_tile,
    read_transposed,
    up,
    write_transposed,
)
from verim.ops.vectors import (
    BYTES,
    LANES,
    LN_2,
    LOG2_E,
    ROW,
    add,
    divide,
    exp2,
    full,
    load,
    load_lanes,
    multiply,
    multiply_add,
    store,
    store_lanes,
    store_scalar,
    subtract,
)
from verim.ops.workers import run_tasks

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 0.04, 0.1  # for one channel of one pair of query and key, measured
_STATISTICS = 2 * TILE  # floats kept for a tile of queries
_ZERO, _ONE = np.float32(0), np.float32(1)


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    window: int,
    dropout: float,
    seed: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of the sum of exponentials of each row."""
    return tiled_attention_forward(q, k, v, bias, causal, window, dropout, seed, scale)


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    dout: Tensor,
    causal: bool,
    window: int,
    dropout: float,
    seed: Tensor | None,
    scale: float,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, and of the bias if wanted, else an empty tensor."""
    return tiled_attention_backward(
        q, k, v, bias, out, logsumexp, dout, causal, window, dropout, seed, scale, bias_gradient
    )


def rotary_attention_forward(
    qkv: Tensor, cosines: Tensor, sines: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The output [batch, length, heads, head_dim] and the logarithm of each row's sum of exponentials."""
    (qkv,) = widen(qkv)
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    q, k, v = qkv.unbind(2)
    batch, length, heads, dim = q.shape
    out = torch.empty(batch, length, heads, dim)
    tiles = -(-length // TILE)
    statistics = torch.empty(batch, heads, tiles, 2, TILE)
    shape = (heads, length, k.shape[1], dim, int(causal))
    places = (*_place(q), *_place(k), *_place(v), *_place(out))
    arguments = (*shape, *_tables((cosines, sines)), scale * LOG2_E, statistics.data_ptr(), *places)
    pairs = batch * heads * length * k.shape[1] * (0.5 if causal else 1.0)
    room = _room(length, k.shape[1], dim)
    run_tasks(_forward, batch * heads, _FORWARD_NANOSECONDS * pairs * dim, room, arguments)
    logsumexp = (statistics[..., 0, :] - statistics[..., 1, :].log2()).flatten(2)[..., :length] * LN_2
    return out, logsumexp.contiguous()


def rotary_attention_backward(
    qkv: Tensor,
    cosines: Tensor,
    sines: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dout: Tensor,
    causal: bool,
    scale: float,
) -> Tensor:
    """The gradient of qkv."""
    qkv, gradient = widen(qkv, dout)
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
    q, k, v = qkv.unbind(2)
    batch, length, heads, dim = q.shape
    dqkv = torch.empty(qkv.shape)
    tiles = -(-length // TILE)
    statistics = torch.ones(batch, heads, tiles, 2, TILE)
    filled = torch.nn.functional.pad(logsumexp / LN_2, (0, tiles * TILE - length))
    statistics[..., 0, :] = filled.view(batch, heads, tiles, TILE)
    shape = (heads, length, k.shape[1], dim, int(causal))
    places = [number for tensor in (q, k, v, gradient, *dqkv.unbind(2)) for number in _place(tensor)]
    arguments = (*shape, *_tables((cosines, sines)), scale * LOG2_E, statistics.data_ptr(), *places)
    pairs = batch * heads * length * k.shape[1] * (0.5 if causal else 1.0)
    room = _room(length, k.shape[1], dim)
    run_tasks(_backward, batch * heads, _BACKWARD_NANOSECONDS * pairs * dim, room, arguments)
    return dqkv


def _place(tensor: Tensor) -> tuple[int, int, int, int]:
    """Address and strides in bytes of [batch, length, heads, head_dim] whose channels lie side by side."""
    a, b, c, _ = tensor.stride()
    return tensor.data_ptr(), a * BYTES, b * BYTES, c * BYTES


def _tables(tables: tuple[Tensor, Tensor] | None) -> tuple[int, int]:
    return (0, 0) if tables is None else (tables[0].data_ptr(), tables[1].data_ptr())


def _room(length: int, keys: int, dim: int) -> int:
    """Floats of scratch: what `_forward` and `_backward` lay out, rounded up."""
    keys, length, dim = -(-keys // LANES) * LANES, -(-length // TILE) * TILE, -(-dim // LANES) * LANES
    of_keys = 6 * (keys + LANES) * dim + 2 * keys * TILE
    of_queries = 5 * dim * TILE + (dim + LANES) * length  # with the tables, whose last rows are rounded up
    return of_keys + of_queries + LANES * LANES + 2 * TILE


@njit(nogil=True)
def _rotate(x: int, stride: int, cosines: int, sines: int, table: int, half: int, scale: Any, turn: Any) -> None:
    """16 positions, transposed: pairs (d, d + half) rotated by their angles (`turn` 1) or back (-1), and scaled."""
    for d in range(half):
        c = multiply(load(cosines + d * table), full(scale))
        s = multiply(load(sines + d * table), full(scale * turn))
        left, right = load(x + d * stride), load(x + (d + half) * stride)
        store(x + d * stride, subtract(multiply(left, c), multiply(right, s)))
        store(x + (d + half) * stride, multiply_add(left, s, multiply(right, c)))


@njit(nogil=True)
def _scale(x: int, stride: int, rows: int, scale: Any) -> None:
    for d in range(rows):
        store(x + d * stride, multiply(load(x + d * stride), full(scale)))


@njit(nogil=True)
def _turned(
    x: int,
    stride: int,
    position: int,
    dim: int,
    cosines: int,
    sines: int,
    table: int,
    scale: Any,
    turn: Any,
) -> None:
    """16 positions from `position` on, transposed: rotated where there are tables, and scaled."""
    if table != 0:
        place = position * BYTES
        _rotate(x, stride, cosines + place, sines + place, table, dim // 2, scale, turn)
    else:
        _scale(x, stride, dim, scale)


@njit(nogil=True)
def _hide(scores: int, first: int, last: int, visible: int, mask: int) -> None:
    """-inf where a lane may not see a key: key j is seen from lane j - `visible` on."""
    for j in range(first, last):
        edge = mask + (TILE - min(j - visible, TILE)) * BYTES
        place = scores + j * TILE_ROW
        store(place, add(load(place), load(edge)))
        store(place + ROW, add(load(place + ROW), load(edge + ROW)))


@njit(cache=True, nogil=True, error_model="numpy")
def _forward(
    first: int,
    last: int,
    scratch: int,
    heads: int,
    length: int,
    keys: int,
    dim: int,
    causal: int,
    cosines: int,
    sines: int,
    factor: float,
    statistics: int,
    q: int,
    q_batch: int,
    q_time: int,
    q_head: int,
    k: int,
    k_batch: int,
    k_time: int,
    k_head: int,
    v: int,
    v_batch: int,
    v_time: int,
    v_head: int,
    out: int,
    out_batch: int,
    out_time: int,
    out_head: int,
) -> None:
    scale, forward = np.float32(factor), np.float32(1)
    wide, padded, tiles = up(dim, LANES), up(keys, LANES), (length + TILE - 1) // TILE
    line, step = wide * BYTES, (padded + LANES) * BYTES
    kt = scratch  # keys, transposed: [wide, padded + 16] (a stride that is no power of two)
    rows = kt + wide * step  # values: [padded, wide]
    qt = rows + padded * line  # queries, transposed: [wide, 32]
    ot = qt + wide * TILE_ROW  # output, transposed
    scores = ot + wide * TILE_ROW  # then probabilities: [padded, 32]
    spare = scores + padded * TILE_ROW
    mask = spare + LANES * ROW
    ct = mask + 2 * TILE_ROW  # tables, transposed: [half, table]
    table = up(length, TILE) * BYTES if cosines != 0 else 0
    st = ct + dim // 2 * table
    _prepare(mask, ct, st, table, cosines, sines, length, dim // 2, spare)
    for item in range(first, last):
        batch, head = item // heads, item % heads
        source = k + batch * k_batch + head * k_head
        for j in range(0, keys, LANES):
            read_transposed(kt + j * BYTES, step, source + j * k_time, k_time, keys - j, dim, spare)
            if table != 0:
                _turned(kt + j * BYTES, step, j, dim, ct, st, table, _ONE, forward)
        _copy(rows, line, v + batch * v_batch + head * v_head, v_time, keys, padded, dim)
        for tile in range(tiles):
            start = tile * TILE
            source = q + batch * q_batch + head * q_head
            for half in range(2):
                here, place = start + half * LANES, qt + half * ROW
                read_transposed(place, TILE_ROW, source + here * q_time, q_time, length - here, dim, spare)
                _turned(place, TILE_ROW, here, dim, ct, st, table, scale, forward)
            visible = start + keys - length if causal else keys - TILE
            seen = min(visible + TILE, keys)
            end = up(seen, 8)
            for j in range(0, seen, 8):
                product_of_tile(scores + j * TILE_ROW, qt, kt + j * BYTES, step, dim)
            _hide(scores, max(visible, 0) if causal else seen, end, visible, mask)
            left = right = full(np.float32(-np.inf))
            for j in range(end):
                left = maximum(load(scores + j * TILE_ROW), left)
                right = maximum(load(scores + j * TILE_ROW + ROW), right)
            left_sum = right_sum = full(_ZERO)
            for j in range(end):
                place = scores + j * TILE_ROW
                e, f = exp2(subtract(load(place), left)), exp2(subtract(load(place + ROW), right))
                left_sum, right_sum = add(left_sum, e), add(right_sum, f)
                store(place, e)
                store(place + ROW, f)
            left_sum, right_sum = divide(full(_ONE), left_sum), divide(full(_ONE), right_sum)
            kept = statistics + (item * tiles + tile) * 2 * TILE_ROW
            store(kept, left)
            store(kept + ROW, right)
            store(kept + TILE_ROW, left_sum)
            store(kept + TILE_ROW + ROW, right_sum)
            for d in range(0, dim, 8):
                product_of_tile(ot + d * TILE_ROW, scores, rows + d * BYTES, line, seen)
            for d in range(dim):
                place = ot + d * TILE_ROW
                store(place, multiply(load(place), left_sum))
                store(place + ROW, multiply(load(place + ROW), right_sum))
            target = out + batch * out_batch + head * out_head
            for half in range(2):
                here = start + half * LANES
                write_transposed(
                    target + here * out_time, out_time, ot + half * ROW, TILE_ROW, length - here, dim, spare
                )


@njit(cache=True, nogil=True, error_model="numpy")
def _backward(
    first: int,
    last: int,
    scratch: int,
    heads: int,
    length: int,
    keys: int,
    dim: int,
    causal: int,
    cosines: int,
    sines: int,
    factor: float,
    statistics: int,
    q: int,
    q_batch: int,
    q_time: int,
    q_head: int,
    k: int,
    k_batch: int,
    k_time: int,
    k_head: int,
    v: int,
    v_batch: int,
    v_time: int,
    v_head: int,
    g: int,
    g_batch: int,
    g_time: int,
    g_head: int,
    dq: int,
    dq_batch: int,
    dq_time: int,
    dq_head: int,
    dk: int,
    dk_batch: int,
    dk_time: int,
    dk_head: int,
    dv: int,
    dv_batch: int,
    dv_time: int,
    dv_head: int,
) -> None:
    scale, forward, back = np.float32(factor), np.float32(1), np.float32(-1)
    ln_2 = np.float32(LN_2)
    wide, padded, tiles = up(dim, LANES), up(keys, LANES), (length + TILE - 1) // TILE
    line, step = wide * BYTES, (padded + LANES) * BYTES
    kt = scratch  # keys, transposed: [wide, padded + 16] (a stride that is no power of two)
    vt = kt + wide * step  # values, transposed
    rows = vt + wide * step  # keys: [padded, wide]
    dk_rows = rows + padded * line
    dv_rows = dk_rows + padded * line
    qt = dv_rows + padded * line  # queries, transposed: [wide, 32]
    gt = qt + wide * TILE_ROW  # gradient of the output, transposed
    dqt = gt + wide * TILE_ROW
    q_rows = dqt + wide * TILE_ROW  # [32, wide]
    g_rows = q_rows + wide * TILE_ROW
    p = g_rows + wide * TILE_ROW  # scores, then probabilities: [padded, 32]
    ds = p + padded * TILE_ROW  # gradient of the probabilities, then of the scores
    spare = ds + padded * TILE_ROW
    mask = spare + LANES * ROW
    ct = mask + 2 * TILE_ROW  # tables, transposed: [half, table]
    table = up(length, TILE) * BYTES if cosines != 0 else 0
    st = ct + dim // 2 * table
    _prepare(mask, ct, st, table, cosines, sines, length, dim // 2, spare)
    for item in range(first, last):
        batch, head = item // heads, item % heads
        for j in range(0, keys, LANES):
            source, place = k + batch * k_batch + j * k_time + head * k_head, kt + j * BYTES
            read_transposed(place, step, source, k_time, keys - j, dim, spare)
            if table != 0:
                _turned(place, step, j, dim, ct, st, table, _ONE, forward)
            for d in range(0, wide, LANES):
                transpose(rows + j * line + d * BYTES, line, place + d * step, step)
            source = v + batch * v_batch + j * v_time + head * v_head
            read_transposed(vt + j * BYTES, step, source, v_time, keys - j, dim, spare)
        for place in range(dk_rows, qt, ROW):
            store(place, full(_ZERO))
        for tile in range(tiles):
            start = tile * TILE
            for half in range(2):
                here, place = start + half * LANES, half * ROW
                source = q + batch * q_batch + here * q_time + head * q_head
                read_transposed(qt + place, TILE_ROW, source, q_time, length - here, dim, spare)
                _turned(qt + place, TILE_ROW, here, dim, ct, st, table, scale, forward)
                source = g + batch * g_batch + here * g_time + head * g_head
                read_transposed(gt + place, TILE_ROW, source, g_time, length - here, dim, spare)
                for d in range(0, wide, LANES):
                    row = half * LANES * line + d * BYTES
                    transpose(q_rows + row, line, qt + place + d * TILE_ROW, TILE_ROW)
                    transpose(g_rows + row, line, gt + place + d * TILE_ROW, TILE_ROW)
            visible = start + keys - length if causal else keys - TILE
            seen = min(visible + TILE, keys)
            end = up(seen, 8)
            for j in range(0, seen, 8):
                product_of_tile(p + j * TILE_ROW, qt, kt + j * BYTES, step, dim)
                product_of_tile(ds + j * TILE_ROW, gt, vt + j * BYTES, step, dim)
            _hide(p, max(visible, 0) if causal else seen, end, visible, mask)
            _softmax_backward(p, ds, end, statistics + (item * tiles + tile) * 2 * TILE_ROW)
            for d in range(0, dim, 8):
                product_of_tile(dqt + d * TILE_ROW, ds, rows + d * BYTES, line, seen)
            for half in range(2):
                here, place = start + half * LANES, dqt + half * ROW
                _turned(place, TILE_ROW, here, dim, ct, st, table, scale * ln_2, back)
                target = dq + batch * dq_batch + here * dq_time + head * dq_head
                write_transposed(target, dq_time, place, TILE_ROW, length - here, dim, spare)
            for d in range(0, line, ROW):
                for j in range(0, seen, 8):
                    add_rows_of_tile(dk_rows + j * line + d, line, q_rows + d, line, ds + j * TILE_ROW)
                    add_rows_of_tile(dv_rows + j * line + d, line, g_rows + d, line, p + j * TILE_ROW)
        for j in range(0, keys, LANES):
            for d in range(0, wide, LANES):
                transpose(qt + d * TILE_ROW, TILE_ROW, dk_rows + j * line + d * BYTES, line)
            _turned(qt, TILE_ROW, j, dim, ct, st, table, ln_2, back)
            target = dk + batch * dk_batch + j * dk_time + head * dk_head
            write_transposed(target, dk_time, qt, TILE_ROW, keys - j, dim, spare)
        for j in range(keys):
            target = dv + batch * dv_batch + j * dv_time + head * dv_head
            for d in range(0, dim, LANES):
                store_lanes(target + d * BYTES, dim - d, load(dv_rows + j * line + d * BYTES))


@njit(nogil=True)
def _prepare(
    mask: int, ct: int, st: int, table: int, cosines: int, sines: int, length: int, half: int, spare: int
) -> None:
    """The mask, -inf in 32 floats and 0 in 32 more, of which a window is read; the tables transposed."""
    for n in range(2 * TILE):
        store_scalar(mask + n * BYTES, np.float32(-np.inf if n < TILE else 0))
    if table != 0:
        for t in range(0, up(length, TILE), LANES):
            source, place = t * half * BYTES, t * BYTES
            # rounded up to 16 channels: the sines overwrite what the cosines leave behind them
            read_transposed(ct + place, table, cosines + source, half * BYTES, length - t, half, spare)
        for t in range(0, up(length, TILE), LANES):
            source, place = t * half * BYTES, t * BYTES
            read_transposed(st + place, table, sines + source, half * BYTES, length - t, half, spare)


@njit(nogil=True)
def _copy(target: int, line: int, source: int, stride: int, count: int, padded: int, dim: int) -> None:
    """Rows of `dim` floats into rows of `line` bytes, zeros behind them and in rows up to `padded`."""
    for j in range(padded):
        for d in range(0, dim, LANES):
            value = load_lanes(source + j * stride + d * BYTES, dim - d) if j < count else full(_ZERO)
            store(target + j * line + d * BYTES, value)


@njit(nogil=True)
def _softmax_backward(p: int, ds: int, count: int, kept: int) -> None:
    """Scores in `p` become probabilities; their gradients in `ds` become those of the scores."""
    left, right = load(kept), load(kept + ROW)
    left_share, right_share = load(kept + TILE_ROW), load(kept + TILE_ROW + ROW)
    left_sum = right_sum = full(_ZERO)
    for j in range(count):
        place, gradient = p + j * TILE_ROW, ds + j * TILE_ROW
        e = multiply(exp2(subtract(load(place), left)), left_share)
        f = multiply(exp2(subtract(load(place + ROW), right)), right_share)
        left_sum = multiply_add(e, load(gradient), left_sum)
        right_sum = multiply_add(f, load(gradient + ROW), right_sum)
        store(place, e)
        store(place + ROW, f)
    for j in range(count):
        place, gradient = p + j * TILE_ROW, ds + j * TILE_ROW
        store(gradient, multiply(load(place), subtract(load(gradient), left_sum)))
        store(gradient + ROW, multiply(load(place + ROW), subtract(load(gradient + ROW), right_sum)))
