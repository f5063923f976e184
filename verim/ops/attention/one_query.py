"""Attention of one query a sequence on the CPU, as in decoding: keys and values are read once.

A task is one key/value head of one sequence. The scores of 16 keys at a time are added up lane by lane and turned
into one vector; their softmax stands in scratch; then the values are added up, one vector of channels after the other.
Keys and values of a sequence lie one behind the other, or in pages of 16 that a table names.
"""

import numpy as np
import torch
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.lanes import between, largest_lane, load_integer, maximum, sum_of_lanes
from verim.ops.memory import address_of
from verim.ops.vectors import (
    BYTES,
    LANES,
    LOG2_E,
    ROW,
    add,
    broadcast,
    exp2,
    full,
    load,
    multiply,
    multiply_add,
    prefetch,
    store,
    subtract,
    sum_rows,
)
from verim.ops.workers import run_tasks

_NANOSECONDS = 0.15  # to read a number of a key or a value
_AHEAD = 8  # keys: rows of other heads lie in between


PAGE = LANES
"""Keys a page."""


def one_query_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    window: int,
    scale: float,
    table: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """softmax(scale q Kᵀ) V for q [batch, 1, heads, head_dim]; the first `padding` keys of a sequence are not seen.

    With `table` [batch, pages of a sequence] k and v are pages [pages, 16, kv_heads, head_dim]: key i of a sequence is
    number i mod 16 of page table[i / 16], and a sequence has `lengths` of them; there is no window and no padding.
    Float32, head_dim a multiple of 16, channels side by side, at least one key. Unchecked.
    """
    batch, _, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    q = q.contiguous()
    padding = None if padding is None else padding.contiguous()
    out = torch.empty(batch, 1, heads, dim, dtype=torch.float32, device="cpu")
    pages = 0
    if table is not None and lengths is not None:
        table, lengths = table.contiguous(), lengths.contiguous()
        pages = table.shape[1]
        keys = pages * PAGE
    arguments: tuple[int | float, ...] = (keys, kv_heads, heads // kv_heads, dim // LANES, window, scale)
    arguments += (address_of(padding), q.data_ptr(), *_places(k), *_places(v), out.data_ptr())
    arguments += (address_of(table), address_of(lengths), pages)
    scratch = LANES * LANES + (keys + LANES) // LANES * LANES
    work = _NANOSECONDS * 2 * batch * keys * heads * dim
    run_tasks(_one_query, batch * kv_heads, work, scratch, arguments)
    return out


def _places(tensor: Tensor) -> tuple[int, int, int, int]:
    """The address, and the bytes to the next sequence, key and head."""
    batch, key, head, _ = tensor.stride()
    return tensor.data_ptr(), BYTES * batch, BYTES * key, BYTES * head


@compiled
def _one_query(
    first: int,
    last: int,
    scratch: int,
    keys: int,
    kv_heads: int,
    group: int,
    vectors: int,
    window: int,
    scale: float,
    padding: int,
    q: int,
    k: int,
    k_batch: int,
    k_key: int,
    k_head: int,
    v: int,
    v_batch: int,
    v_key: int,
    v_head: int,
    out: int,
    table: int,
    lengths: int,
    pages: int,
) -> None:
    """Compiled. Tensors are addresses, 0 for None; steps are in bytes. With a table a "batch" step is one of a page."""
    scores = scratch + LANES * ROW
    hidden = full(np.float32(-np.inf))
    for task in range(first, last):
        batch, head = task // kv_heads, task % kv_heads
        start = 0
        if padding != 0:
            start = max(load_integer(padding + 8 * batch), 0)
        if window > 0:
            start = max(start, keys - window)
        count = keys - start
        k_first = k + head * k_head
        v_first = v + head * v_head
        first_page = 0
        if table != 0:
            count = load_integer(lengths + 8 * batch)
            first_page = table + 8 * batch * pages
        else:
            k_first += batch * k_batch + start * k_key
            v_first += batch * v_batch + start * v_key
        for member in range(group):
            place = ((batch * kv_heads + head) * group + member) * vectors * ROW
            query, target = q + place, out + place
            if count <= 0:
                for c in range(vectors):
                    store(target + c * ROW, full(np.float32(0)))
                continue
            largest = hidden
            for begin in range(0, count, LANES):
                members = min(count - begin, LANES)
                key = k_first + begin * k_key
                if table != 0:
                    key = k_first + load_integer(first_page + begin // LANES * 8) * k_batch
                for i in range(members):
                    total = multiply(load(query), load(key))
                    for c in range(1, vectors):
                        total = multiply_add(load(query + c * ROW), load(key + c * ROW), total)
                    for c in range(vectors):
                        prefetch(key + _AHEAD * k_key + c * ROW)
                    store(scratch + i * ROW, total)
                    key += k_key
                for i in range(members, LANES):
                    store(scratch + i * ROW, hidden)
                score = multiply(sum_rows(scratch, ROW, LANES // 2 * ROW), full(np.float32(scale * LOG2_E)))
                score = between(score, 0, members, hidden)
                store(scores + begin * BYTES, score)
                largest = maximum(largest, score)
            top = full(largest_lane(largest))
            sums = full(np.float32(0))
            for begin in range(0, count, LANES):
                share = exp2(subtract(load(scores + begin * BYTES), top))
                store(scores + begin * BYTES, share)
                sums = add(sums, share)
            inverse = full(np.float32(1) / sum_of_lanes(sums))
            for c in range(vectors):
                even = odd = full(np.float32(0))
                value = v_first + c * ROW
                for begin in range(0, count, LANES):
                    if table != 0:
                        value = v_first + load_integer(first_page + begin // LANES * 8) * v_batch + c * ROW
                    score_place = scores + begin * BYTES
                    for _ in range(min(count - begin, LANES) // 2):
                        prefetch(value + _AHEAD * v_key)
                        even = multiply_add(broadcast(score_place), load(value), even)
                        odd = multiply_add(broadcast(score_place + BYTES), load(value + v_key), odd)
                        value += 2 * v_key
                        score_place += 2 * BYTES
                if count % 2 == 1:
                    even = multiply_add(broadcast(scores + (count - 1) * BYTES), load(value), even)
                store(target + c * ROW, multiply(add(even, odd), inverse))
