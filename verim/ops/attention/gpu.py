"""Attention on CUDA devices, in Triton, after FlashAttention-2 (arXiv 2307.08691).

A program of the forward pass keeps some queries of one head and walks over the keys that any of them sees, a tile
at a time, with a running maximum and sum. It does so in three loops: tiles on the window's edge, tiles that all its
queries see whole, tiles on the diagonal or at the end; only the first and the last look at positions. Scores carry
the factor log2(e), so that exp2 serves.

The backward pass recomputes the probabilities P from the kept logarithms, twice: a program of `_backward_of_keys`
keeps some keys and walks over the queries of all heads that share them, one of `_backward_of_queries` keeps queries
and walks over keys. That is 7 products where atomic additions would need 5, but no two programs write to one place:
the same input gives the same bits. With G the gradient of the output, M the dropout mask divided by 1 - dropout:

    dP = M ⊙ (G Vᵀ)     dS = P ⊙ (dP - rowsum(G ⊙ out))     dQ = dS K     dK = dSᵀ Q     dV = (M ⊙ P)ᵀ G

Halves are multiplied as they are and summed in float32. A product of float32 tiles is made of three TF32 products,
which keeps 21 of float32's 23 bits, or of one where `torch.set_float32_matmul_precision` allows it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (Triton takes no annotations beside tl.constexpr)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from verim.ops.attention.dropout import FIRST_MULTIPLIER, KEY_STEP, SECOND_MULTIPLIER, row_words, threshold
from verim.ops.attention.gpu_tiles import Tiles, architecture_of, padded_to, tiles_of
from verim.ops.launch import launch
from verim.ops.rotary.reference import rotary_reference

_LOG2_E, _LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
_KEY_STEP, _FIRST, _SECOND = tl.constexpr(KEY_STEP), tl.constexpr(FIRST_MULTIPLIER), tl.constexpr(SECOND_MULTIPLIER)
_ANYWHERE = 2**30  # how far a query sees without a limit
_PREPARED = 64  # rows of a program of `_prepare`


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
    """The output, and the logarithm of the sum of exponentials of each row (infinite where nothing is seen)."""
    if scale < 0:  # the kernel scales a maximum
        q, scale = -q, -scale
    call = _Call(q, k, v, bias, causal, window, dropout, seed, scale, spans)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    logsumexp = torch.empty(call.batch, call.heads, call.length, dtype=torch.float32, device=q.device)
    tiles = tiles_of("_forward", q, more=bias is not None or dropout > 0)
    programs = call.batch * call.heads * triton.cdiv(call.length, tiles.rows)
    call.launch(_forward, programs, tiles, out, logsumexp, EDGE=window > 0 or spans is not None)
    return out, logsumexp


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
    """The gradients of q, k, v, and of the bias if wanted, else an empty tensor."""
    call = _Call(q, k, v, bias, causal, window, dropout, seed, scale, spans)
    batch, heads, length, keys = call.batch, call.heads, call.length, call.keys
    logarithms, products = (torch.empty_like(logsumexp, memory_format=torch.contiguous_format) for _ in range(2))
    upstream, out = _placed(dout), out.contiguous()
    programs = triton.cdiv(logsumexp.numel(), _PREPARED)
    arguments = upstream, out, logsumexp.contiguous(), logarithms, products, heads, length, logsumexp.numel()
    launch(_prepare, programs, q, *arguments, DIM=call.dim, PADDED=padded_to(call.dim), ROWS=_PREPARED)
    upstream = *upstream, logarithms, products

    wanted = bias if bias_gradient else None
    by_key = wanted is not None and wanted.shape[2] == 1 < wanted.shape[3]  # the same for all queries
    sums = torch.empty((batch, heads, keys) if by_key else (0,), dtype=torch.float32, device=q.device)
    dq, dk, dv = (torch.empty(tensor.shape, dtype=tensor.dtype, device=q.device) for tensor in (q, k, v))
    more = bias is not None or dropout > 0
    tiles = tiles_of("_backward_of_keys", q, more)
    programs = batch * k.shape[2] * triton.cdiv(keys, tiles.columns)
    limited = causal or window > 0
    call.launch(_backward_of_keys, programs, tiles, upstream, dk, dv, sums, EDGE=limited, SUMMED=by_key)
    tiles = tiles_of("_backward_of_queries", q, more)
    programs = batch * heads * triton.cdiv(length, tiles.rows)
    call.launch(_backward_of_queries, programs, tiles, upstream, dq, EDGE=window > 0 or spans is not None)

    if wanted is None:
        return dq, dk, dv, torch.empty(0, dtype=q.dtype if bias is None else bias.dtype, device=q.device)
    if by_key:
        return dq, dk, dv, sums[:, :, None].sum_to_size(wanted.shape).to(wanted.dtype)
    dbias = torch.zeros(wanted.shape, dtype=wanted.dtype, device=q.device)
    if wanted.shape[3] > 1:  # what is the same for all keys changes nothing: its gradient is 0
        repeats = batch // max(wanted.shape[0], 1), heads // max(wanted.shape[1], 1)
        across = triton.cdiv(length, tiles.rows) * triton.cdiv(keys, tiles.columns)
        programs = wanted.shape[0] * wanted.shape[1] * across
        call.launch(_backward_of_bias, programs, tiles, upstream, dbias, wanted.shape[1], *repeats, logsumexp.numel())
    return dq, dk, dv, dbias


def rotary_attention_forward(
    qkv: Tensor, cosines: Tensor, sines: Tensor, causal: bool, scale: float, spans: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The output [batch, length, heads, head_dim] and the logarithm of each row's sum of exponentials."""
    q, k = _rotated(qkv[:, :, :2], cosines, sines).unbind(2)
    return attention_forward(q, k, qkv[:, :, 2], None, causal, 0, 0.0, None, scale, spans)


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
    q, k = _rotated(qkv[:, :, :2], cosines, sines).unbind(2)
    options = causal, 0, 0.0, None, scale, False, spans
    dq, dk, dv, _ = attention_backward(q, k, qkv[:, :, 2], None, out, logsumexp, dout, *options)
    return torch.cat([_rotated(torch.stack([dq, dk], 2), cosines, -sines), dv[:, :, None]], 2)


def _rotated(pair: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotated in float32, in the type given."""
    return rotary_reference(pair.float(), cosines.float(), sines.float()).to(pair.dtype)


class _Call:
    """What all kernels are told, from checked arguments."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        causal: bool,
        window: int,
        dropout: float,
        seed: Tensor | None,
        scale: float,
        spans: Tensor | None,
    ) -> None:
        self.batch, self.length, self.heads, self.dim = q.shape
        self.keys, kv_heads = k.shape[1:3]
        shape = self.batch, self.heads, self.length, self.keys
        words, least = None, 0
        if dropout:
            assert seed is not None, "dropout draws from a seed"
            words, least = row_words(seed, *shape[:3], q.device), threshold(dropout)
        before = min(window - 1, _ANYWHERE) if window else _ANYWHERE
        self._like = q
        self._arguments = (
            *(_placed(q), _placed(k), _placed(v), (bias, *((0,) * 4 if bias is None else bias.expand(shape).stride()))),
            *(words, self.heads, max(self.heads // max(kv_heads, 1), 1), self.length, self.keys),
            *(self.keys - self.length, before, 0 if causal else before),
            *(scale * _LOG2_E.value, least, 1 - dropout, spans),
        )
        self._constants = {
            "DIM": self.dim,
            "PADDED": padded_to(self.dim),
            "BIASED": bias is not None,
            "DROPPED": dropout > 0,
            "PACKED": spans is not None,
            "TYPE": _multiplied_as(q),
            "PRECISION": _precision(q),
        }

    def launch(self, kernel: Any, programs: int, tiles: Tiles, *arguments: Any, **constants: Any) -> None:
        """Runs `kernel` with the call's arguments, and these."""
        constants |= {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "warps": tiles.warps, "num_stages": tiles.stages}
        launch(kernel, programs, self._like, *self._arguments, *arguments, **constants, **self._constants)


def _placed(tensor: Tensor) -> tuple[Any, ...]:
    """[batch, length, heads, head_dim] with channels side by side, and the strides of the others."""
    tensor = tensor if tensor.stride(3) == 1 else tensor.contiguous()
    return tensor, *tensor.stride()[:3]


def _multiplied_as(like: Tensor) -> Any:
    """The type of the tiles that are multiplied. Triton's interpreter cannot multiply bfloat16."""
    if like.dtype is torch.bfloat16 and architecture_of(like):
        return tl.bfloat16
    return tl.float16 if like.dtype is torch.float16 else tl.float32


def _precision(like: Tensor) -> str:
    if 0 < architecture_of(like) < 80:
        return "ieee"  # there is no TF32
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def _seen(first, last, shift, before, after, end, STEP: tl.constexpr):
    """What positions `first` to `last` see of the other side, which has `end`: position i sees i + shift - before to
    i + shift + after.

    Four numbers in order: tiles begin at the first; those from the second up to the third are seen whole by all
    positions; the last tile begins before the fourth.
    """
    low = tl.maximum(first + shift - before, 0) // STEP * STEP
    high = tl.minimum(last + shift + after + 1, end)
    whole = tl.maximum((tl.maximum(last + shift - before, 0) + STEP - 1) // STEP * STEP, low)
    broken = tl.maximum(tl.minimum(first + shift + after + 1, end), 0) // STEP * STEP
    return low, whole, tl.maximum(whole, broken), high


@triton.jit
def _head(tensor, batch, head):
    """The address of a head, and the stride of its rows."""
    address, of_batch, of_row, of_head = tensor
    return address + batch.to(tl.int64) * of_batch + head.to(tl.int64) * of_head, of_row


@triton.jit
def _load(place, rows, end, DIM: tl.constexpr, PADDED: tl.constexpr, BOUND: tl.constexpr, TYPE: tl.constexpr):
    """Rows of a head as a tile in TYPE: zeros beyond its channels and, where BOUND, from row `end` on."""
    address, stride = place
    channels = tl.arange(0, PADDED)
    addresses = address + rows.to(tl.int64)[:, None] * stride + channels[None, :]
    if BOUND and DIM < PADDED:
        tile = tl.load(addresses, mask=(rows < end)[:, None] & (channels < DIM)[None, :], other=0.0)
    elif BOUND:
        tile = tl.load(addresses, mask=(rows < end)[:, None], other=0.0)
    elif DIM < PADDED:
        tile = tl.load(addresses, mask=(channels < DIM)[None, :], other=0.0)
    else:
        tile = tl.load(addresses)
    return tile.to(TYPE)


@triton.jit
def _store(address, tile, rows, end, stride, DIM: tl.constexpr, PADDED: tl.constexpr):
    channels = tl.arange(0, PADDED)
    addresses = address + rows.to(tl.int64)[:, None] * stride + channels[None, :]
    tl.store(addresses, tile.to(address.dtype.element_ty), mask=(rows < end)[:, None] & (channels < DIM)[None, :])


@triton.jit
def _scores(products, i, j, firsts, bias, band, scale, MASKED: tl.constexpr, BIASED: tl.constexpr):
    """The scores of queries i and keys j, times log2(e); where MASKED -inf for what is not seen.

    `firsts`: the first key of each query's document (0 without documents).
    """
    length, keys, shift, before, after = band
    scores = products * scale
    if BIASED:
        address, of_row, of_column = bias
        row = tl.minimum(i, length - 1).to(tl.int64) * of_row
        scores += tl.load(address + row + tl.minimum(j, keys - 1).to(tl.int64) * of_column).to(tl.float32) * _LOG2_E
    if MASKED:
        ahead = j - i - shift
        seen = (ahead >= -before) & (ahead <= after) & (j < keys) & (i < length) & (j >= firsts)
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@triton.jit
def _kept(words, j, least):
    """The dropout mask; see dropout.py."""
    first, second = words
    x = first + j.to(tl.uint32) * _KEY_STEP
    x = (x ^ (x >> 16)) * _FIRST + second
    x = (x ^ (x >> 15)) * _SECOND
    return (x ^ (x >> 15)) >= least


@triton.jit
def _words(words, place, total, inside, DROPPED: tl.constexpr):
    """The two words of the rows from address `place` on."""
    first, second = place, place
    if DROPPED:
        first = tl.load(words + place, mask=inside, other=0).to(tl.uint32, bitcast=True)
        second = tl.load(words + total + place, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return first, second


@triton.jit
def _sequence(spans, batch, length, PACKED: tl.constexpr):
    """The address of a sequence's spans."""
    if PACKED:
        spans += batch.to(tl.int64) * length
    return spans


@triton.jit
def _firsts(spans, rows, length, PACKED: tl.constexpr):
    """The first key of each query's document; 0 without documents."""
    firsts = rows * 0
    if PACKED:
        firsts = tl.load(spans + rows, mask=rows < length, other=0)
    return firsts


@triton.jit
def _attend(
    state,
    query,
    rows,
    firsts,
    key_place,
    value_place,
    bias,
    words,
    low,
    high,
    band,
    scale,
    least,
    MASKED: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The keys of the tiles from `low` on, added to the sums, the maxima and the mixtures of the rows."""
    mixed, largest, total = state
    for start in range(low, high, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        key = _load(key_place, columns, band[1], DIM, PADDED, MASKED, TYPE)
        products = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        if MASKED or BIASED:
            scores = _scores(
                products, rows[:, None], columns[None, :], firsts[:, None], bias, band, scale, MASKED, BIASED
            )
            top = tl.maximum(largest, tl.max(scores, 1))
            base = tl.where(top == float("-inf"), 0.0, top)  # rows that have seen nothing yet
            weights = tl.exp2(scores - base[:, None])
        else:
            top = tl.maximum(largest, tl.max(products, 1) * scale)
            base = top
            weights = tl.exp2(products * scale - base[:, None])
        factor = tl.exp2(largest - base)
        total = total * factor + tl.sum(weights, 1)
        largest = top
        if DROPPED:
            weights = tl.where(_kept((words[0][:, None], words[1][:, None]), columns[None, :], least), weights, 0.0)
        value = _load(value_place, columns, band[1], DIM, PADDED, MASKED, TYPE)
        mixed = tl.dot(weights.to(TYPE), value, mixed * factor[:, None], input_precision=PRECISION)
    return mixed, largest, total


@triton.jit(do_not_specialize=("length", "keys", "shift", "before", "after", "least"))
def _forward(
    q,
    k,
    v,
    bias,
    words,
    heads,
    group,
    length,
    keys,
    shift,
    before,
    after,
    scale,
    least,
    remain,
    spans,
    out,
    logsumexp,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EDGE: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
    PACKED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: ROWS queries of a head. The last ones see most keys with `causal`, and begin first."""
    tiles = tl.cdiv(length, ROWS)
    first = (tiles - 1 - tl.program_id(0) % tiles) * ROWS
    head = tl.program_id(0) // tiles % heads
    batch = tl.program_id(0) // tiles // heads
    place = (batch.to(tl.int64) * heads + head) * length
    rows = first + tl.arange(0, ROWS)
    band = length, keys, shift, before, after
    query = _load(_head(q, batch, head), rows, length, DIM, PADDED, True, TYPE)
    key, value = _head(k, batch, head // group), _head(v, batch, head // group)
    added = _bias_of(bias, batch, head, BIASED)
    total = tl.num_programs(0) // tiles * length.to(tl.int64)
    drawn = _words(words, place + rows, total, rows < length, DROPPED)
    state = (
        tl.zeros((ROWS, PADDED), tl.float32),
        tl.full((ROWS,), float("-inf"), tl.float32),
        tl.zeros((ROWS,), tl.float32),
    )
    own = _sequence(spans, batch, length, PACKED)
    firsts = _firsts(own, rows, length, PACKED)
    last = tl.minimum(first + ROWS, length) - 1
    low, whole, broken, high = _seen(first, last, shift, before, after, keys, COLUMNS)
    if PACKED:
        low = tl.maximum(low, tl.load(own + first) // COLUMNS * COLUMNS)
        whole = tl.maximum(whole, (tl.load(own + last) + COLUMNS - 1) // COLUMNS * COLUMNS)
        broken = tl.maximum(whole, broken)
    for part in tl.static_range(0 if EDGE else 1, 3):
        start = low if part == 0 else whole if part == 1 else broken
        stop = tl.minimum(whole, high) if part == 0 else broken if part == 1 else high
        state = _attend(
            state,
            query,
            rows,
            firsts,
            key,
            value,
            added,
            drawn,
            start,
            stop,
            band,
            scale,
            least,
            part != 1,
            COLUMNS,
            DIM,
            PADDED,
            BIASED,
            DROPPED,
            TYPE,
            PRECISION,
        )
    mixed, largest, total = state
    blind = total == 0
    total = tl.where(blind, 1.0, total)
    kept = tl.where(blind, float("inf"), (largest + tl.log2(total)) * _LN_2)
    tl.store(logsumexp + place + rows, kept, mask=rows < length)
    out += (batch.to(tl.int64) * length * heads + head) * DIM
    _store(out, mixed / (total * remain)[:, None], rows, length, heads * DIM, DIM, PADDED)


@triton.jit(do_not_specialize=("heads", "length", "total"))
def _prepare(
    upstream,
    out,
    logsumexp,
    logarithms,
    products,
    heads,
    length,
    total,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """For every query and head the logarithm to base 2, and the product of the output with its gradient."""
    index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # of [batch, heads, length]
    row, head, batch = index % length, index // length % heads, index // length // heads
    address, of_batch, of_row, of_head = upstream
    channels = tl.arange(0, PADDED)[None, :]
    inside = (index < total)[:, None] & (channels < DIM)
    place = batch * of_batch + row * of_row + head * of_head
    gradient = tl.load(address + place[:, None] + channels, mask=inside, other=0.0).to(tl.float32)
    place = ((batch * length + row) * heads + head) * DIM
    mixed = tl.load(out + place[:, None] + channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(products + index, tl.sum(gradient * mixed, 1), mask=index < total)
    logarithm = tl.load(logsumexp + index, mask=index < total, other=0.0)
    tl.store(logarithms + index, logarithm * _LOG2_E, mask=index < total)


@triton.jit
def _bias_of(bias, batch, head, BIASED: tl.constexpr):
    """The bias of a head: its address and strides."""
    address, of_batch, of_head, of_row, of_column = bias
    if BIASED:
        address += batch.to(tl.int64) * of_batch + head.to(tl.int64) * of_head
    return address, of_row, of_column


@triton.jit
def _differentiate(
    products,
    gains,
    i,
    j,
    firsts,
    logarithms,
    means,
    bias,
    words,
    band,
    scale,
    least,
    remain,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
):
    """The probabilities that were kept, and the gradient of the scores, from q k and dout v of queries i and keys j."""
    weights = tl.exp2(_scores(products, i, j, firsts, bias, band, scale, MASKED, BIASED) - logarithms)
    kept_weights = weights
    if DROPPED:
        kept = _kept(words, j, least)
        kept_weights, gains = tl.where(kept, weights, 0.0), tl.where(kept, gains / remain, 0.0)
    return kept_weights, weights * (gains - means)


@triton.jit
def _walk_queries(
    state,
    key,
    value,
    columns,
    query_place,
    gradient_place,
    of_rows,
    bias,
    words,
    spans,
    low,
    high,
    band,
    numbers,
    PACKED: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    SUMMED: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What the queries of the tiles from `low` on add to the gradients of the keys, of the values and of their bias."""
    dkey, dvalue, sums = state
    logarithms, products_of_rows, total = of_rows
    scale, least, remain = numbers
    for start in range(low, high, ROWS):
        rows = start + tl.arange(0, ROWS)
        query = _load(query_place, rows, band[0], DIM, PADDED, MASKED, TYPE)
        gradient = _load(gradient_place, rows, band[0], DIM, PADDED, MASKED, TYPE)
        inside = rows < band[0]
        logarithm = tl.load(logarithms + rows, mask=inside, other=0.0)[None, :]
        mean = tl.load(products_of_rows + rows, mask=inside, other=0.0)[None, :]
        first, second = _words(words, rows, total, inside, DROPPED)
        products = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        gains = tl.dot(value, tl.trans(gradient), input_precision=PRECISION)
        weights, dscores = _differentiate(
            products,
            gains,
            rows[None, :],
            columns[:, None],
            _firsts(spans, rows, band[0], PACKED)[None, :],
            logarithm,
            mean,
            bias,
            (first[None, :], second[None, :]),
            band,
            scale,
            least,
            remain,
            MASKED,
            BIASED,
            DROPPED,
        )
        dvalue = tl.dot(weights.to(TYPE), gradient, dvalue, input_precision=PRECISION)
        dkey = tl.dot(dscores.to(TYPE), query, dkey, input_precision=PRECISION)
        if SUMMED:
            sums += tl.sum(dscores, 1)
    return dkey, dvalue, sums


@triton.jit(do_not_specialize=("length", "keys", "shift", "before", "after", "least"))
def _backward_of_keys(
    q,
    k,
    v,
    bias,
    words,
    heads,
    group,
    length,
    keys,
    shift,
    before,
    after,
    scale,
    least,
    remain,
    spans,
    upstream,
    dk,
    dv,
    sums,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EDGE: tl.constexpr,
    SUMMED: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
    PACKED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: COLUMNS keys of a key/value head, and all query heads that share it."""
    tiles = tl.cdiv(keys, COLUMNS)
    first = tl.program_id(0) % tiles * COLUMNS
    kv_heads = heads // group
    kv_head = tl.program_id(0) // tiles % kv_heads
    batch = tl.program_id(0) // tiles // kv_heads
    total = tl.num_programs(0) // tiles * group * length.to(tl.int64)
    columns = first + tl.arange(0, COLUMNS)
    band = length, keys, shift, before, after
    key = _load(_head(k, batch, kv_head), columns, keys, DIM, PADDED, True, TYPE)
    value = _load(_head(v, batch, kv_head), columns, keys, DIM, PADDED, True, TYPE)
    dkey, dvalue = tl.zeros((COLUMNS, PADDED), tl.float32), tl.zeros((COLUMNS, PADDED), tl.float32)
    # seen from a key the window is reversed
    low, whole, broken, high = _seen(first, tl.minimum(first + COLUMNS, keys) - 1, -shift, after, before, length, ROWS)
    own = _sequence(spans, batch, length, PACKED)
    if PACKED:  # a key is seen up to the end of its document
        ends = own + (tl.num_programs(0) // tiles // kv_heads).to(tl.int64) * length
        high = tl.minimum(high, tl.load(ends + tl.minimum(first + COLUMNS, keys) - 1))
        broken = tl.maximum(whole, tl.minimum(broken, tl.load(ends + first) // ROWS * ROWS))
    address, of_batch, of_row, of_head, logarithms, products = upstream
    for member in range(group):
        head = kv_head * group + member
        place = (batch.to(tl.int64) * heads + head) * length
        query, gradient = _head(q, batch, head), _head((address, of_batch, of_row, of_head), batch, head)
        added = _bias_of(bias, batch, head, BIASED)
        drawn = words
        if DROPPED:
            drawn = words + place
        state = dkey, dvalue, tl.zeros((COLUMNS,), tl.float32)
        for part in tl.static_range(0 if EDGE else 1, 3):
            start = low if part == 0 else whole if part == 1 else broken
            stop = tl.minimum(whole, high) if part == 0 else broken if part == 1 else high
            state = _walk_queries(
                state,
                key,
                value,
                columns,
                query,
                gradient,
                (logarithms + place, products + place, total),
                added,
                drawn,
                own,
                start,
                stop,
                band,
                (scale, least, remain),
                PACKED,
                part != 1,
                ROWS,
                SUMMED,
                DIM,
                PADDED,
                BIASED,
                DROPPED,
                TYPE,
                PRECISION,
            )
        dkey, dvalue, of_bias = state
        if SUMMED:
            tl.store(sums + (batch.to(tl.int64) * heads + head) * keys + columns, of_bias, mask=columns < keys)
    place = (batch.to(tl.int64) * keys * kv_heads + kv_head) * DIM
    _store(dk + place, dkey * (scale * _LN_2), columns, keys, kv_heads * DIM, DIM, PADDED)
    _store(dv + place, dvalue / remain, columns, keys, kv_heads * DIM, DIM, PADDED)


@triton.jit
def _walk_keys(
    dquery,
    query,
    gradient,
    rows,
    firsts,
    of_rows,
    key_place,
    value_place,
    bias,
    words,
    low,
    high,
    band,
    numbers,
    MASKED: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What the keys of the tiles from `low` on add to the gradient of the queries."""
    scale, least, remain = numbers
    logarithm, mean = of_rows
    first, second = words
    for start in range(low, high, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        key = _load(key_place, columns, band[1], DIM, PADDED, MASKED, TYPE)
        value = _load(value_place, columns, band[1], DIM, PADDED, MASKED, TYPE)
        products = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        gains = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
        _, dscores = _differentiate(
            products,
            gains,
            rows[:, None],
            columns[None, :],
            firsts[:, None],
            logarithm[:, None],
            mean[:, None],
            bias,
            (first[:, None], second[:, None]),
            band,
            scale,
            least,
            remain,
            MASKED,
            BIASED,
            DROPPED,
        )
        dquery = tl.dot(dscores.to(TYPE), key, dquery, input_precision=PRECISION)
    return dquery


@triton.jit(do_not_specialize=("length", "keys", "shift", "before", "after", "least"))
def _backward_of_queries(
    q,
    k,
    v,
    bias,
    words,
    heads,
    group,
    length,
    keys,
    shift,
    before,
    after,
    scale,
    least,
    remain,
    spans,
    upstream,
    dq,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EDGE: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
    PACKED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: ROWS queries of a head, as in `_forward`."""
    tiles = tl.cdiv(length, ROWS)
    first = (tiles - 1 - tl.program_id(0) % tiles) * ROWS
    head = tl.program_id(0) // tiles % heads
    batch = tl.program_id(0) // tiles // heads
    place = (batch.to(tl.int64) * heads + head) * length
    rows = first + tl.arange(0, ROWS)
    inside = rows < length
    band = length, keys, shift, before, after
    address, of_batch, of_row, of_head, logarithms, products = upstream
    query = _load(_head(q, batch, head), rows, length, DIM, PADDED, True, TYPE)
    gradient = _load(_head((address, of_batch, of_row, of_head), batch, head), rows, length, DIM, PADDED, True, TYPE)
    logarithm = tl.load(logarithms + place + rows, mask=inside, other=0.0)
    mean = tl.load(products + place + rows, mask=inside, other=0.0)
    key, value = _head(k, batch, head // group), _head(v, batch, head // group)
    added = _bias_of(bias, batch, head, BIASED)
    drawn = _words(words, place + rows, tl.num_programs(0) // tiles * length.to(tl.int64), inside, DROPPED)
    dquery = tl.zeros((ROWS, PADDED), tl.float32)
    own = _sequence(spans, batch, length, PACKED)
    firsts = _firsts(own, rows, length, PACKED)
    last = tl.minimum(first + ROWS, length) - 1
    low, whole, broken, high = _seen(first, last, shift, before, after, keys, COLUMNS)
    if PACKED:
        low = tl.maximum(low, tl.load(own + first) // COLUMNS * COLUMNS)
        whole = tl.maximum(whole, (tl.load(own + last) + COLUMNS - 1) // COLUMNS * COLUMNS)
        broken = tl.maximum(whole, broken)
    for part in tl.static_range(0 if EDGE else 1, 3):
        start = low if part == 0 else whole if part == 1 else broken
        stop = tl.minimum(whole, high) if part == 0 else broken if part == 1 else high
        dquery = _walk_keys(
            dquery,
            query,
            gradient,
            rows,
            firsts,
            (logarithm, mean),
            key,
            value,
            added,
            drawn,
            start,
            stop,
            band,
            (scale, least, remain),
            part != 1,
            COLUMNS,
            DIM,
            PADDED,
            BIASED,
            DROPPED,
            TYPE,
            PRECISION,
        )
    dq += (batch.to(tl.int64) * length * heads + head) * DIM
    _store(dq, dquery * (scale * _LN_2), rows, length, heads * DIM, DIM, PADDED)


@triton.jit(do_not_specialize=("length", "keys", "shift", "before", "after", "least"))
def _backward_of_bias(
    q,
    k,
    v,
    bias,
    words,
    heads,
    group,
    length,
    keys,
    shift,
    before,
    after,
    scale,
    least,
    remain,
    spans,
    upstream,
    dbias,
    bias_heads,
    batch_repeats,
    head_repeats,
    total,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    DROPPED: tl.constexpr,
    PACKED: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: one tile of a bias [., ., length, keys], summed over the sequences and heads that share it."""
    across, down = tl.cdiv(keys, COLUMNS), tl.cdiv(length, ROWS)
    plane = tl.program_id(0) // across // down
    rows = tl.program_id(0) // across % down * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < length
    band = length, keys, shift, before, after
    address, of_batch, of_row, of_head, logarithms, products = upstream
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for repeat in range(batch_repeats * head_repeats):
        batch, head = plane // bias_heads + repeat // head_repeats, plane % bias_heads + repeat % head_repeats
        place = (batch.to(tl.int64) * heads + head) * length
        query = _load(_head(q, batch, head), rows, length, DIM, PADDED, True, TYPE)
        key = _load(_head(k, batch, head // group), columns, keys, DIM, PADDED, True, TYPE)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        gradient = _head((address, of_batch, of_row, of_head), batch, head)
        value = _load(_head(v, batch, head // group), columns, keys, DIM, PADDED, True, TYPE)
        gains = tl.dot(
            _load(gradient, rows, length, DIM, PADDED, True, TYPE), tl.trans(value), input_precision=PRECISION
        )
        first, second = _words(words, place + rows, total, inside, DROPPED)
        _, dscores = _differentiate(
            scores,
            gains,
            rows[:, None],
            columns[None, :],
            _firsts(_sequence(spans, batch, length, PACKED), rows, length, PACKED)[:, None],
            tl.load(logarithms + place + rows, mask=inside, other=0.0)[:, None],
            tl.load(products + place + rows, mask=inside, other=0.0)[:, None],
            _bias_of(bias, batch, head, BIASED),
            (first[:, None], second[:, None]),
            band,
            scale,
            least,
            remain,
            True,
            BIASED,
            DROPPED,
        )
        sums += dscores
    dbias += plane.to(tl.int64) * length * keys
    addresses = dbias + rows.to(tl.int64)[:, None] * keys + columns[None, :]
    tl.store(addresses, sums.to(dbias.dtype.element_ty), mask=inside[:, None] & (columns < keys)[None, :])
