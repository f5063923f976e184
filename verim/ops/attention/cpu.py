"""Attention on the CPU: a task is a key/value head of a sequence, and some of the queries that read it.

Queries come 64 at a time, a position to a lane, channels along memory ("transposed"); keys come in blocks of 48, row
by row. Then the scores of a key are four vectors, made of sums over channels with the key's numbers broadcast; the
softmax runs lane by lane with no sum across lanes; and six keys by four vectors are summed in registers at a time.
A tile of queries visits the keys that any of its queries may see. What one block of keys needs lies in the first two
levels of cache; a tile keeps the running maximum m and sum l of each query, and its output, scaled anew whenever
m grows (FlashAttention, arXiv 2205.14135, algorithm 1; with the output divided once at the end as in arXiv 2307.08691).

The logarithm of l, plus m, is kept for each query; from it the backward pass recomputes the probabilities P. With G
the gradient of the output, and M the dropout mask divided by 1 - dropout:

    dP = M ⊙ (G Vᵀ)     dS = P ⊙ (dP - rowsum(G ⊙ out))     dQ = dS K     dK = dSᵀ Q     dV = (M ⊙ P)ᵀ G

Scores carry the factor log2(e), so that exp2 serves; it is taken out of dK at the end. A task sums dK and dV of its
queries, so where few heads make several tasks of one head there are several such sums, added at the end: their number
follows from the shape, and with it the bits.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.attention.dropout import drop_lanes, row_words, threshold
from verim.ops.attention.tiled import tiled_attention_backward
from verim.ops.attention.visible import pairs
from verim.ops.compiled import compiled
from verim.ops.lanes import between, log2, maximum, sum_of_lanes
from verim.ops.precision import widen
from verim.ops.products import product_of
from verim.ops.tiles import fill, read_square, turn, up, write_square
from verim.ops.vectors import (
    BYTES,
    LANES,
    LN_2,
    LOG2_E,
    ROW,
    add,
    broadcast,
    divide,
    exp2,
    full,
    load,
    load_lanes,
    load_scalar,
    multiply,
    multiply_add,
    store,
    store_lanes,
    store_scalar,
    subtract,
)
from verim.ops.workers import run_tasks

TILE, TILE_ROW = 64, 64 * BYTES  # queries side by side
BLOCK, STEP = 48, 12  # keys of a block, and what their number is rounded up to
_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 0.03, 0.08  # for one channel of one pair of query and key, measured
_FORWARD_TASKS, _BACKWARD_TASKS = 32, 8  # as many there should be, where few heads have many queries
_QUERIES_OF_A_TASK = 512
_ZERO, _ONE, _LN_2, _LOG2_E = np.float32(0), np.float32(1), np.float32(LN_2), np.float32(LOG2_E)
_LOWEST = np.float32(-3e38)  # below every score; finite, so that scores of -inf are as far from it as from any
_HIDDEN, _NOTHING = np.float32(-np.inf), np.float32(np.inf)

_scores = product_of(6, 4, adds=False)
_add_6, _add_4, _add_2 = (product_of(rows, 4, adds=True) for rows in (6, 4, 2))
_add_wide, _add_middle, _add_narrow = product_of(6, 4, adds=True), product_of(12, 2, adds=True), product_of(12, 1, True)


@njit(nogil=True, error_model="numpy")
def _read_rows(
    target: int,
    line: int,
    source: int,
    stride: int,
    count: int,
    padded: int,
    dim: int,
    scale: Any,
    cosines: int,
    sines: int,
) -> None:
    """Rows of `dim` floats, scaled, into rows of `line` bytes, zeros behind them and in rows up to `padded`.

    Where there are tables (of the first row on), pairs of channels are rotated.
    """
    factor, half = full(scale), dim // 2
    for row in range(count):
        place, to = source + row * stride, target + row * line
        if cosines != 0:
            store(to + line - ROW, full(_ZERO))
            for d in range(0, half, LANES):
                left, right = load_lanes(place + d * BYTES, half - d), load_lanes(place + (half + d) * BYTES, half - d)
                c = load_lanes(cosines + (row * half + d) * BYTES, half - d)
                s = load_lanes(sines + (row * half + d) * BYTES, half - d)
                turned = subtract(multiply(left, c), multiply(right, s))
                store_lanes(to + d * BYTES, half - d, multiply(turned, factor))
                turned = multiply_add(left, s, multiply(right, c))
                store_lanes(to + (half + d) * BYTES, half - d, multiply(turned, factor))
        else:
            for d in range(0, dim, LANES):
                store(to + d * BYTES, multiply(load_lanes(place + d * BYTES, dim - d), factor))
    for row in range(count, padded):
        fill(target + row * line, line // BYTES, _ZERO)


@njit(nogil=True, error_model="numpy")
def _write_rows(
    target: int, stride: int, source: int, line: int, count: int, dim: int, scale: Any, cosines: int, sines: int
) -> None:
    """Rows of `dim` floats, scaled, from rows of `line` bytes; rotated back where there are tables."""
    factor, half = full(scale), dim // 2
    for row in range(count):
        place, to = source + row * line, target + row * stride
        if cosines != 0:
            for d in range(0, half, LANES):
                left, right = load_lanes(place + d * BYTES, half - d), load_lanes(place + (half + d) * BYTES, half - d)
                c = load_lanes(cosines + (row * half + d) * BYTES, half - d)
                s = load_lanes(sines + (row * half + d) * BYTES, half - d)
                turned = multiply_add(left, c, multiply(right, s))
                store_lanes(to + d * BYTES, half - d, multiply(turned, factor))
                turned = subtract(multiply(right, c), multiply(left, s))
                store_lanes(to + (half + d) * BYTES, half - d, multiply(turned, factor))
        else:
            for d in range(0, dim, LANES):
                store_lanes(to + d * BYTES, dim - d, multiply(load(place + d * BYTES), factor))


@njit(nogil=True, error_model="numpy")
def _seen_from(position: int, window: int) -> Any:
    """The first key that a position sees."""
    return max(position - window + 1, 0) if window != 0 else 0


@njit(nogil=True, error_model="numpy")
def _seen_until(position: int, keys: int, causal: int, window: int) -> Any:
    """The key after the last that a position sees."""
    if causal != 0:
        return min(position + 1, keys)
    return min(position + window, keys) if window != 0 else keys


@njit(nogil=True, error_model="numpy")
def _scores_of_block(
    scores: int,
    queries: int,
    keys_rows: int,
    line: int,
    dim: int,
    key: int,
    count: int,
    position: int,
    rows: int,
    keys: int,
    causal: int,
    window: int,
    bias: int,
    bias_row: int,
    bias_key: int,
    square: int,
    firsts: int,
) -> None:
    """The scores of `count` keys from `key` on, a key to a row: with the bias, and -inf where a lane may not see."""
    for j in range(0, count, 6):
        place = keys_rows + (key + j) * line
        _scores(scores + j * TILE_ROW, TILE_ROW, queries, TILE_ROW, place, line, BYTES, dim)
    if bias != 0:
        _add_bias(scores, bias, bias_row, bias_key, key, min(count, keys - key), rows, square)
    first, reached = _seen_from(position + rows - 1, window), 0
    if firsts != 0:
        first = max(first, np.int64(load_scalar(firsts + (rows - 1) * BYTES)))
    last = _seen_until(position, keys, causal, window)
    if key < first or key + count > last:
        hidden = full(_HIDDEN)
        for j in range(count):
            distance = key + j - position  # from the first lane's position to the key
            low, high = 0, TILE
            if causal != 0:
                low = distance
            elif window != 0:
                low = distance - window + 1
            if window != 0:
                high = distance + window
            if firsts != 0:  # documents begin one after the other: those that key + j has reached are the first lanes
                while reached < rows and load_scalar(firsts + reached * BYTES) <= key + j:
                    reached += 1
                high = min(high, reached)
            if key + j >= keys:
                high = 0
            if low > 0 or high < TILE:
                for lane in range(0, TILE, LANES):
                    place = scores + j * TILE_ROW + lane * BYTES
                    store(place, between(load(place), low - lane, high - lane, hidden))


@njit(nogil=True, error_model="numpy")
def _add_bias(
    scores: int, bias: int, bias_row: int, bias_key: int, key: int, count: int, rows: int, square: int
) -> None:
    """Adds the bias of the tile's queries; `bias` is the address for the tile's first query and key 0."""
    factor = full(_LOG2_E)
    if bias_row == 0:
        for j in range(count):
            value = multiply(broadcast(bias + (key + j) * bias_key), factor)
            for lane in range(0, TILE, LANES):
                place = scores + j * TILE_ROW + lane * BYTES
                store(place, add(load(place), value))
    else:
        for j in range(0, count, LANES):
            for lane in range(0, min(rows, TILE), LANES):
                source = bias + lane * bias_row + (key + j) * bias_key
                read_square(square, source, bias_row, bias_key, rows - lane, count - j)
                for r in range(min(count - j, LANES)):
                    place = scores + (j + r) * TILE_ROW + lane * BYTES
                    store(place, multiply_add(load(square + r * ROW), factor, load(place)))


@njit(nogil=True, error_model="numpy")
def _multiply_rows(target: int, rows: int, factors: int) -> None:
    """Each of the rows of a tile times a row of factors."""
    a, b, c, d = load(factors), load(factors + ROW), load(factors + 2 * ROW), load(factors + 3 * ROW)
    for place in range(target, target + rows * TILE_ROW, TILE_ROW):
        store(place, multiply(load(place), a))
        store(place + ROW, multiply(load(place + ROW), b))
        store(place + 2 * ROW, multiply(load(place + 2 * ROW), c))
        store(place + 3 * ROW, multiply(load(place + 3 * ROW), d))


@njit(nogil=True, error_model="numpy")
def _softmax_of_block(
    scores: int, count: int, largest: int, total: int, factors: int, first: int, second: int, key: int, limit: int
) -> None:
    """Scores become exponentials below the running maximum; what their sums so far must be scaled by: `factors`."""
    a, b, c, d = load(largest), load(largest + ROW), load(largest + 2 * ROW), load(largest + 3 * ROW)
    for place in range(scores, scores + count * TILE_ROW, TILE_ROW):
        a, b = maximum(load(place), a), maximum(load(place + ROW), b)
        c, d = maximum(load(place + 2 * ROW), c), maximum(load(place + 3 * ROW), d)
    for lane, new in ((0, a), (ROW, b), (2 * ROW, c), (3 * ROW, d)):
        factor = exp2(subtract(load(largest + lane), new))
        store(largest + lane, new)
        store(factors + lane, factor)
        store(total + lane, multiply(load(total + lane), factor))
    for lane in range(0, TILE_ROW, ROW):
        base, even = load(largest + lane), load(total + lane)
        odd = full(_ZERO)
        for j in range(0, count, 2):
            place = scores + j * TILE_ROW + lane
            e, f = exp2(subtract(load(place), base)), exp2(subtract(load(place + TILE_ROW), base))
            even, odd = add(even, e), add(odd, f)
            if limit != 0:
                e = drop_lanes(e, first + lane, second + lane, key + j, limit)
                f = drop_lanes(f, first + lane, second + lane, key + j + 1, limit)
            store(place, e)
            store(place + TILE_ROW, f)
        store(total + lane, add(even, odd))


@njit(nogil=True, error_model="numpy")
def _add_product(target: int, rows: int, scores: int, matrix: int, line: int, count: int) -> None:
    """target[d, :] += sum over keys n < count of matrix[n, d] scores[n, :] for d < rows (and up to one more)."""
    d = 0
    while rows - d > 4:
        _add_6(target + d * TILE_ROW, TILE_ROW, scores, TILE_ROW, matrix + d * BYTES, BYTES, line, count)
        d += 6
    if rows - d > 2:
        _add_4(target + d * TILE_ROW, TILE_ROW, scores, TILE_ROW, matrix + d * BYTES, BYTES, line, count)
    elif rows > d:
        _add_2(target + d * TILE_ROW, TILE_ROW, scores, TILE_ROW, matrix + d * BYTES, BYTES, line, count)


@njit(nogil=True, error_model="numpy")
def _add_transposed_product(target: int, line: int, count: int, scores: int, matrix: int, rows: int) -> None:
    """target[n, :] += sum over queries r < rows of scores[n, r] matrix[r, :] for keys n < count."""
    column = 0
    while line - column >= 4 * ROW:
        for j in range(0, count, 6):
            out, y = target + j * line + column, scores + j * TILE_ROW
            _add_wide(out, line, matrix + column, line, y, TILE_ROW, BYTES, rows)
        column += 4 * ROW
    if line - column >= 2 * ROW:
        for j in range(0, count, 12):
            out, y = target + j * line + column, scores + j * TILE_ROW
            _add_middle(out, line, matrix + column, line, y, TILE_ROW, BYTES, rows)
        column += 2 * ROW
    if line > column:
        for j in range(0, count, 12):
            out, y = target + j * line + column, scores + j * TILE_ROW
            _add_narrow(out, line, matrix + column, line, y, TILE_ROW, BYTES, rows)


@njit(nogil=True, error_model="numpy")
def _read_words(target: int, words: int, rows_of_all: int, row: int, count: int) -> None:
    """The dropout's words of the tile's rows: two rows of a tile."""
    for lane in range(0, TILE, LANES):
        here = words + (row + lane) * BYTES
        store(target + lane * BYTES, load_lanes(here, max(count - lane, 0)))
        store(target + TILE_ROW + lane * BYTES, load_lanes(here + rows_of_all * BYTES, max(count - lane, 0)))


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    parts: int,
    batches: int,
    heads: int,
    kv_heads: int,
    length: int,
    keys: int,
    dim: int,
    causal: int,
    window: int,
    factor: float,
    cosines: int,
    sines: int,
    words: int,
    limit: int,
    kept_share: float,
    bias: int,
    bias_batch: int,
    bias_head: int,
    bias_row: int,
    bias_key: int,
    documents: int,
    logsumexp: int,
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
    """Compiled. Tensors are addresses (0 for None); `_batch` and so on are strides in bytes."""
    wide, tiles, group = up(dim, LANES), (length + TILE - 1) // TILE, heads // kv_heads
    line, padded, offset, table = wide * BYTES, keys + STEP, keys - length, dim // 2 * BYTES
    key_rows = scratch
    value_rows = key_rows + padded * line
    query_rows = value_rows + padded * line  # [64, wide], then the output's
    queries = query_rows + TILE * line  # transposed: [wide, 64]
    mixed = queries + wide * TILE_ROW  # the output, transposed
    scores = mixed + wide * TILE_ROW  # [48, 64], a key to a row
    largest = scores + BLOCK * TILE_ROW
    total, factors, drawn = largest + TILE_ROW, largest + 2 * TILE_ROW, largest + 3 * TILE_ROW
    square = drawn + 2 * TILE_ROW
    for task in range(first, last):
        part, item = task % parts, task // parts
        batch, kv_head = item // kv_heads, item % kv_heads
        source = k + batch * k_batch + kv_head * k_head
        _read_rows(key_rows, line, source, k_time, keys, padded, dim, _ONE, cosines, sines)
        source = v + batch * v_batch + kv_head * v_head
        _read_rows(value_rows, line, source, v_time, keys, padded, dim, _ONE, 0, 0)
        for turn_of in range(part, group * tiles, parts):
            head, start = kv_head * group + turn_of // tiles, turn_of % tiles * TILE
            rows, position = min(length - start, TILE), start + offset
            angles = start * table if cosines != 0 else 0
            source = q + batch * q_batch + head * q_head + start * q_time
            of_rows = (cosines + angles, sines + angles)
            _read_rows(query_rows, line, source, q_time, rows, TILE, dim, np.float32(factor), *of_rows)
            turn(queries, TILE_ROW, query_rows, line, TILE, wide)
            row = (batch * heads + head) * length + start
            if limit != 0:
                _read_words(drawn, words, batches * heads * length, row, rows)
            fill(mixed, wide * TILE, _ZERO)
            fill(largest, TILE, _LOWEST)
            fill(total, TILE, _ZERO)
            here = 0
            if bias != 0:
                here = bias + batch * bias_batch + head * bias_head + start * bias_row
            key, firsts = _seen_from(position, window), 0
            if documents != 0:
                firsts = documents + (batch * length + start) * BYTES
                key = max(key, np.int64(load_scalar(firsts)))
            end = _seen_until(position + rows - 1, keys, causal, window)
            while key < end:
                count = up(min(end - key, BLOCK), STEP)
                _scores_of_block(
                    scores, queries, key_rows, line, dim, key, count, position, rows, keys, causal, window,
                    here, bias_row, bias_key, square, firsts,
                )  # fmt: skip
                _softmax_of_block(scores, count, largest, total, factors, drawn, drawn + TILE_ROW, key, limit)
                _multiply_rows(mixed, dim, factors)
                _add_product(mixed, dim, scores, value_rows + key * line, line, count)
                key += BLOCK
            for lane in range(0, TILE_ROW, ROW):
                sums = load(total + lane)
                store(factors + lane, divide(full(np.float32(1 / kept_share)), sums))
                kept = multiply(add(load(largest + lane), log2(sums)), full(_LN_2))
                store(largest + lane, kept)
            for lane in range(rows):
                if load_scalar(total + lane * BYTES) == 0:
                    store_scalar(factors + lane * BYTES, _ZERO)
                    store_scalar(largest + lane * BYTES, _NOTHING)
            for lane in range(0, rows, LANES):
                store_lanes(logsumexp + (row + lane) * BYTES, rows - lane, load(largest + lane * BYTES))
            _multiply_rows(mixed, dim, factors)
            turn(query_rows, line, mixed, TILE_ROW, wide, TILE)
            target = out + batch * out_batch + head * out_head + start * out_time
            _write_rows(target, out_time, query_rows, line, rows, dim, _ONE, 0, 0)


@njit(nogil=True, error_model="numpy")
def _differentiate_block(
    shares: int, dscores: int, count: int, kept: int, dots: int, drawn: int, key: int, limit: int
) -> None:
    """Scores become probabilities, for dV: dropped out; gradients of the probabilities become those of the scores."""
    for lane in range(0, TILE_ROW, ROW):
        base, dot = load(kept + lane), load(dots + lane)
        for j in range(count):
            place, gradient = shares + j * TILE_ROW + lane, dscores + j * TILE_ROW + lane
            e, g = exp2(subtract(load(place), base)), load(gradient)
            share = e
            if limit != 0:
                share = drop_lanes(e, drawn + lane, drawn + TILE_ROW + lane, key + j, limit)
                g = drop_lanes(g, drawn + lane, drawn + TILE_ROW + lane, key + j, limit)
            store(place, share)
            store(gradient, multiply(e, subtract(g, dot)))


@compiled
def _backward(
    first: int,
    last: int,
    scratch: int,
    parts: int,
    batches: int,
    heads: int,
    kv_heads: int,
    length: int,
    keys: int,
    dim: int,
    causal: int,
    window: int,
    factor: float,
    cosines: int,
    sines: int,
    words: int,
    limit: int,
    kept_share: float,
    bias: int,
    bias_batch: int,
    bias_head: int,
    bias_row: int,
    bias_key: int,
    documents: int,
    dbias: int,
    logsumexp: int,
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
    g: int,
    g_batch: int,
    g_time: int,
    g_head: int,
    dq: int,
    dq_batch: int,
    dq_time: int,
    dq_head: int,
    dk: int,
    dk_part: int,
    dk_batch: int,
    dk_time: int,
    dk_head: int,
    dv: int,
    dv_part: int,
    dv_batch: int,
    dv_time: int,
    dv_head: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and so on are strides in bytes."""
    wide, tiles, group = up(dim, LANES), (length + TILE - 1) // TILE, heads // kv_heads
    line, padded, offset, table = wide * BYTES, keys + STEP, keys - length, dim // 2 * BYTES
    key_rows = scratch
    value_rows = key_rows + padded * line
    dkeys = value_rows + padded * line
    dvalues = dkeys + padded * line
    query_rows = dvalues + padded * line  # [64, wide], then the gradient's
    gradient_rows = query_rows + TILE * line  # first the output's
    queries = gradient_rows + TILE * line  # transposed: [wide, 64]
    gradients = queries + wide * TILE_ROW
    dqueries = gradients + wide * TILE_ROW
    shares = dqueries + wide * TILE_ROW  # [48, 64], a key to a row: scores, then probabilities
    dscores = shares + BLOCK * TILE_ROW
    kept = dscores + BLOCK * TILE_ROW
    dots, drawn = kept + TILE_ROW, kept + 2 * TILE_ROW
    square = drawn + 2 * TILE_ROW
    for task in range(first, last):
        part, item = task % parts, task // parts
        batch, kv_head = item // kv_heads, item % kv_heads
        source = k + batch * k_batch + kv_head * k_head
        _read_rows(key_rows, line, source, k_time, keys, padded, dim, _ONE, cosines, sines)
        source = v + batch * v_batch + kv_head * v_head
        _read_rows(value_rows, line, source, v_time, keys, padded, dim, _ONE, 0, 0)
        fill(dkeys, 2 * padded * wide, _ZERO)
        for turn_of in range(part, group * tiles, parts):
            head, start = kv_head * group + turn_of // tiles, turn_of % tiles * TILE
            rows, position = min(length - start, TILE), start + offset
            angles = start * table if cosines != 0 else 0
            of_rows = (cosines + angles, sines + angles)
            row = (batch * heads + head) * length + start
            if limit != 0:
                _read_words(drawn, words, batches * heads * length, row, rows)
            source = out + batch * out_batch + head * out_head + start * out_time
            _read_rows(query_rows, line, source, out_time, rows, TILE, dim, np.float32(kept_share), 0, 0)
            source = g + batch * g_batch + head * g_head + start * g_time
            _read_rows(gradient_rows, line, source, g_time, rows, TILE, dim, np.float32(1 / kept_share), 0, 0)
            for lane in range(TILE):
                dot = full(_ZERO)
                for d in range(lane * line, lane * line + line, ROW):
                    dot = multiply_add(load(query_rows + d), load(gradient_rows + d), dot)
                store_scalar(dots + lane * BYTES, sum_of_lanes(dot))
            fill(kept, TILE, _NOTHING)
            for lane in range(0, rows, LANES):
                value = load_lanes(logsumexp + (row + lane) * BYTES, rows - lane)
                value = between(value, 0, rows - lane, full(_NOTHING))
                store(kept + lane * BYTES, multiply(value, full(_LOG2_E)))
            source = q + batch * q_batch + head * q_head + start * q_time
            _read_rows(query_rows, line, source, q_time, rows, TILE, dim, np.float32(factor), *of_rows)
            turn(queries, TILE_ROW, query_rows, line, TILE, wide)
            turn(gradients, TILE_ROW, gradient_rows, line, TILE, wide)
            fill(dqueries, wide * TILE, _ZERO)
            here = 0
            if bias != 0:
                here = bias + batch * bias_batch + head * bias_head + start * bias_row
            key, firsts = _seen_from(position, window), 0
            if documents != 0:
                firsts = documents + (batch * length + start) * BYTES
                key = max(key, np.int64(load_scalar(firsts)))
            end = _seen_until(position + rows - 1, keys, causal, window)
            while key < end:
                count = up(min(end - key, BLOCK), STEP)
                _scores_of_block(
                    shares, queries, key_rows, line, dim, key, count, position, rows, keys, causal, window,
                    here, bias_row, bias_key, square, firsts,
                )  # fmt: skip
                for j in range(0, count, 6):
                    place = value_rows + (key + j) * line
                    _scores(dscores + j * TILE_ROW, TILE_ROW, gradients, TILE_ROW, place, line, BYTES, dim)
                _differentiate_block(shares, dscores, count, kept, dots, drawn, key, limit)
                _add_product(dqueries, dim, dscores, key_rows + key * line, line, count)
                _add_transposed_product(dkeys + key * line, line, count, dscores, query_rows, TILE)
                _add_transposed_product(dvalues + key * line, line, count, shares, gradient_rows, TILE)
                if dbias != 0:
                    columns = min(count, keys - key)
                    for j in range(0, columns, LANES):
                        for lane in range(0, rows, LANES):
                            target = dbias + ((row + lane) * keys + key + j) * BYTES
                            tile = dscores + j * TILE_ROW + lane * BYTES
                            write_square(target, keys * BYTES, tile, TILE_ROW, rows - lane, columns - j, square)
                key += BLOCK
            turn(query_rows, line, dqueries, TILE_ROW, wide, TILE)
            target = dq + batch * dq_batch + head * dq_head + start * dq_time
            scale = np.float32(factor * LN_2)
            _write_rows(target, dq_time, query_rows, line, rows, dim, scale, *of_rows)
        target = dk + part * dk_part + batch * dk_batch + kv_head * dk_head
        _write_rows(target, dk_time, dkeys, line, keys, dim, _LN_2, cosines, sines)
        target = dv + part * dv_part + batch * dv_batch + kv_head * dv_head
        _write_rows(target, dv_time, dvalues, line, keys, dim, _ONE, 0, 0)


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
    spans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of the sum of exponentials of each row. Arguments are unchecked."""
    out = torch.empty(q.shape, dtype=torch.float32, device="cpu")
    logsumexp = _run_forward(q, k, v, None, bias, causal, window, dropout, seed, scale, spans, out)
    return out.to(q.dtype), logsumexp


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
    spans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, and of the bias if wanted, else an empty tensor. Arguments are unchecked."""
    every = q.shape[0], q.shape[2], q.shape[1], k.shape[1]
    if bias is not None and bias_gradient and bias.shape != every:  # which sums over what several tasks compute
        return tiled_attention_backward(
            q, k, v, bias, out, logsumexp, dout, causal, window, dropout, seed, scale, bias_gradient, spans
        )
    dbias = torch.zeros(every if bias_gradient else (0,), dtype=torch.float32, device="cpu")
    dq, dk, dv = (torch.empty(tensor.shape, dtype=torch.float32, device="cpu") for tensor in (q, k, v))
    given = out, logsumexp, dout, dq, dk, dv, dbias
    _run_backward(q, k, v, None, bias, causal, window, dropout, seed, scale, spans, *given)
    wanted = q.dtype if bias is None else bias.dtype
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), dbias.to(wanted if bias_gradient else q.dtype)


def rotary_attention_forward(
    qkv: Tensor, cosines: Tensor, sines: Tensor, causal: bool, scale: float, spans: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The output [batch, length, heads, head_dim] and the logarithm of each row's sum of exponentials."""
    batch, length, _, heads, dim = qkv.shape
    out = torch.empty(batch, length, heads, dim, dtype=torch.float32, device="cpu")
    q, k, v = qkv.unbind(2)
    logsumexp = _run_forward(q, k, v, (cosines, sines), None, causal, 0, 0.0, None, scale, spans, out)
    return out.to(qkv.dtype), logsumexp


def rotary_attention_backward(
    qkv: Tensor,
    cosines: Tensor,
    sines: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dout: Tensor,
    causal: bool,
    scale: float,
    spans: Tensor | None = None,
) -> Tensor:
    """The gradient of qkv."""
    dqkv = torch.empty(qkv.shape, dtype=torch.float32, device="cpu")
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), dqkv.unbind(2)
    given = out, logsumexp, dout, dq, dk, dv, dqkv.new_empty(0)
    _run_backward(q, k, v, (cosines, sines), None, causal, 0, 0.0, None, scale, spans, *given)
    return dqkv.to(qkv.dtype)


def _run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    causal: bool,
    window: int,
    dropout: float,
    seed: Tensor | None,
    scale: float,
    spans: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Writes into `out`; the logarithms of the sums of exponentials."""
    batch, length, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    logsumexp = torch.empty(batch, heads, length, dtype=torch.float32, device="cpu")
    parts = _parts(q, k, _FORWARD_TASKS)
    given = _Given(q, k, v, tables, bias, causal, window, dropout, seed, scale, spans, parts)
    places = [number for tensor in (given.q, given.k, given.v, out) for number in _place(tensor)]
    arguments = (*given.options, logsumexp.data_ptr(), *places)
    work = _FORWARD_NANOSECONDS * batch * heads * pairs(length, keys, causal, window) * dim
    wide = _rounded(dim, LANES)
    room = wide * (2 * (keys + STEP) + 3 * TILE) + (BLOCK + 6) * TILE + LANES * LANES
    run_tasks(_forward, batch * kv_heads * parts, work, room, arguments)
    return logsumexp


def _run_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    causal: bool,
    window: int,
    dropout: float,
    seed: Tensor | None,
    scale: float,
    spans: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    dout: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor,
) -> None:
    """Writes the gradients into the tensors given for them."""
    batch, length, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    parts = _parts(q, k, _BACKWARD_TASKS)
    given = _Given(q, k, v, tables, bias, causal, window, dropout, seed, scale, spans, parts)
    out, dout = (_rows(tensor) for tensor in widen(out, dout))
    sums = torch.empty(2, parts, *k.shape, dtype=torch.float32, device="cpu") if parts > 1 else None
    of_keys, of_values = (dk[None], dv[None]) if sums is None else sums
    places = [number for tensor in (given.q, given.k, given.v, out, dout, dq) for number in _place(tensor)]
    places += [number for tensor in (of_keys, of_values) for number in _place(tensor)]
    arguments = (*given.options, dbias.data_ptr() if dbias.numel() else 0, logsumexp.data_ptr(), *places)
    work = _BACKWARD_NANOSECONDS * batch * heads * pairs(length, keys, causal, window) * dim
    wide = _rounded(dim, LANES)
    room = wide * (4 * (keys + STEP) + 5 * TILE) + (2 * BLOCK + 5) * TILE + LANES * LANES
    run_tasks(_backward, batch * kv_heads * parts, work, room, arguments)
    if sums is not None:
        torch.sum(of_keys, 0, out=dk)
        torch.sum(of_values, 0, out=dv)


class _Given:
    """What both kernels are given: float32 tensors whose channels lie side by side, and the numbers of the call."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tables: tuple[Tensor, Tensor] | None,
        bias: Tensor | None,
        causal: bool,
        window: int,
        dropout: float,
        seed: Tensor | None,
        scale: float,
        spans: Tensor | None,
        parts: int,
    ) -> None:
        batch, length, heads, dim = q.shape
        self.q, self.k, self.v = (_rows(tensor) for tensor in widen(q, k, v))
        self.kept = [] if tables is None else [table.contiguous() for table in widen(*tables)]  # alive for the call
        of_tables = tuple(table.data_ptr() for table in self.kept) or (0, 0)
        of_words = 0, 0, 1.0
        if dropout:
            assert seed is not None, "dropout draws from a seed"
            self.kept.append(row_words(seed, batch, heads, length, q.device))
            of_words = self.kept[-1].data_ptr(), threshold(dropout), 1 - dropout
        of_bias: tuple[int, ...] = (0, 0, 0, 0, 0)
        if bias is not None:
            (bias,) = widen(bias)
            self.kept.append(bias)
            steps = zip(bias.shape, bias.stride(), strict=True)
            of_bias = bias.data_ptr(), *(0 if size == 1 else BYTES * stride for size, stride in steps)
        of_documents = 0
        if spans is not None:  # as floats, which are exact up to 2^24
            self.kept.append(spans[0].to(torch.float32, memory_format=torch.contiguous_format))
            of_documents = self.kept[-1].data_ptr()
        self.options: tuple[int | float, ...] = (parts, batch, heads, k.shape[2], length, k.shape[1], dim, int(causal))
        self.options += (window, scale * LOG2_E, *of_tables, *of_words, *of_bias, of_documents)


def _parts(q: Tensor, k: Tensor, tasks: int) -> int:
    """How many tasks share a key/value head."""
    items = q.shape[0] * k.shape[2]
    queries = q.shape[1] * (q.shape[2] // k.shape[2])
    return max(min(-(-tasks // max(items, 1)), queries // _QUERIES_OF_A_TASK), 1)


def _rows(tensor: Tensor) -> Tensor:
    """`tensor` itself where its channels lie side by side, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Address and strides in bytes of all but the last axis, whose entries lie side by side."""
    return tensor.data_ptr(), *(BYTES * stride for stride in tensor.stride()[:-1])


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
