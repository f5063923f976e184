"""Attention tile by tile over torch's own matrix products: any device, any floating-point data type.

FlashAttention (arXiv 2205.14135, algorithm 1) with all heads of the batch side by side: a tile is some queries of
every head against some keys, its scores the only thing as large as that; a running maximum and sum make the softmax
(Milakov and Gimelshein 2018, arXiv 1805.02867). Queries of the heads that share a key/value head lie below each
other, so grouped heads need no copies. The backward pass recomputes the probabilities P from the kept logarithm of
each row's sum; with G the gradient of the output, and M the dropout mask divided by 1 - dropout:

    dP = M ⊙ (G Vᵀ)     dS = P ⊙ (dP - rowsum(G ⊙ out))     dQ = dS K     dK = dSᵀ Q     dV = (M ⊙ P)ᵀ G

Halves are multiplied as float32 numbers (exactly); all else is float32, or float64 where that is given.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from verim.ops.attention.dropout import kept, row_words
from verim.ops.attention.visible import span, visible
from verim.ops.precision import HALVES

_TILE_ENTRIES = 2**19  # of the scores of a tile, of all heads: they stay close to the cores
_SMALLEST, _LARGEST = 32, 512  # rows and columns of a tile


def tiled_attention_forward(
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
    tiles = _Tiles(q, k, bias, causal, window, dropout, seed, spans)
    out, logsumexp = torch.empty(q.shape, dtype=q.dtype, device=q.device), tiles.new_rows()
    keys, values = tiles.by_group(k), tiles.by_group(v)
    for rows in tiles.rows():
        queries = tiles.queries(q, rows) * scale
        largest = queries.new_full((*queries.shape[:2], 1), -torch.inf)
        total, mixed = torch.zeros_like(largest), torch.zeros_like(queries)
        for columns in tiles.columns(rows):
            part = slice(columns.start, columns.stop)
            shares = tiles.scores(queries, keys[:, part], rows, columns)
            new = torch.maximum(largest, shares.amax(-1, keepdim=True))
            base = new.masked_fill(new == -torch.inf, 0)  # rows that have seen nothing yet
            factor = torch.exp(largest - base)
            shares.sub_(base).exp_()
            total.mul_(factor).add_(shares.sum(-1, keepdim=True))
            tiles.drop(shares, rows, columns)
            mixed.mul_(factor)
            torch.baddbmm(mixed, shares, values[:, part], out=mixed)
            largest = new
        blind = total == 0
        mixed.div_(total.masked_fill_(blind, 1) * (1 - dropout))
        tiles.put(out, mixed, rows)
        kept_number = (largest + total.log_()).masked_fill_(blind, torch.inf)
        logsumexp[:, :, rows.start : rows.stop] = kept_number.view(tiles.batch, tiles.heads, len(rows))
    return out, logsumexp


def tiled_attention_backward(
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
    tiles = _Tiles(q, k, bias, causal, window, dropout, seed, spans)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    keys, values = tiles.by_group(k), tiles.by_group(v)
    dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
    wanted = bias if bias_gradient else None
    dbias = q.new_empty(0) if wanted is None else torch.zeros(wanted.shape, dtype=keys.dtype, device=q.device)
    for rows in tiles.rows():
        queries, gradient = tiles.queries(q, rows) * scale, tiles.queries(dout, rows)
        dot = (gradient * tiles.queries(out, rows)).sum(-1, keepdim=True)
        gradient = gradient / (1 - dropout)
        sums = logsumexp[:, :, rows.start : rows.stop].reshape(*queries.shape[:2], 1)
        dqueries = torch.zeros_like(queries)
        for columns in tiles.columns(rows):
            part = slice(columns.start, columns.stop)
            shares = tiles.scores(queries, keys[:, part], rows, columns).sub_(sums).exp_()
            dscores = torch.bmm(gradient, values[:, part].mT)
            tiles.drop(dscores, rows, columns)
            dscores.sub_(dot).mul_(shares)
            tiles.drop(shares, rows, columns)
            dvalues[:, part].baddbmm_(shares.mT, gradient)
            dkeys[:, part].baddbmm_(dscores.mT, queries)
            dqueries.baddbmm_(dscores, keys[:, part])
            if wanted is not None:
                tiles.add_to_bias(dbias, dscores, rows, columns)
        tiles.put(dq, dqueries.mul_(scale), rows)
    dbias = dbias if wanted is None else dbias.to(wanted.dtype)
    return dq, tiles.from_group(dkeys, k), tiles.from_group(dvalues, v), dbias


class _Tiles:
    """What a call consists of: tensors [batch · kv_heads, group · rows, columns] for ranges of rows and columns."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        bias: Tensor | None,
        causal: bool,
        window: int,
        dropout: float,
        seed: Tensor | None,
        spans: Tensor | None,
    ) -> None:
        self.batch, self.length, self.heads, _ = q.shape
        self.keys, self.kv_heads = k.shape[1], k.shape[2]
        self.device, self.dtype = q.device, torch.float32 if q.dtype in HALVES else q.dtype
        self.bias, self.causal, self.window, self.dropout = bias, causal, window, dropout
        self.firsts = None if spans is None else spans[0]
        self.words = None
        if dropout:
            assert seed is not None, "dropout draws from a seed"
            self.words = row_words(seed, self.batch, self.heads, self.length, q.device)
        per_head = _TILE_ENTRIES / max(self.batch * self.heads, 1)
        side = 2 ** int(per_head**0.5).bit_length() // 2
        self.side = min(max(side, _SMALLEST), _LARGEST)

    def new_rows(self) -> Tensor:
        """A number for each query and head."""
        return torch.empty(self.batch, self.heads, self.length, dtype=self.dtype, device=self.device)

    def rows(self) -> Iterator[range]:
        for first in range(0, self.length, self.side):
            yield range(first, min(first + self.side, self.length))

    def columns(self, rows: range) -> Iterator[range]:
        """Ranges that cover the keys that any of the rows may see."""
        offset = self.keys - self.length
        first, _ = span(rows.start + offset, self.keys, self.causal, self.window)
        _, last = span(rows.stop - 1 + offset, self.keys, self.causal, self.window)
        if self.firsts is not None and self.batch:
            first = max(first, int(self.firsts[:, rows.start].min()))
        for start in range(first, last, self.side):
            yield range(start, min(start + self.side, last))

    def by_group(self, tensor: Tensor) -> Tensor:
        """[batch, keys, kv_heads, head_dim], a key/value head after the other."""
        batch, keys, kv_heads, dim = tensor.shape
        return tensor.to(self.dtype).transpose(1, 2).reshape(batch * kv_heads, keys, dim)

    def from_group(self, tensor: Tensor, like: Tensor) -> Tensor:
        """The other way round, as a new tensor of the shape and data type of `like`."""
        batch, keys, kv_heads, dim = like.shape
        turned = tensor.view(batch, kv_heads, keys, dim).transpose(1, 2)
        return turned.to(like.dtype, memory_format=torch.contiguous_format, copy=True)

    def queries(self, tensor: Tensor, rows: range) -> Tensor:
        """The rows of [batch, length, heads, head_dim], those of a group's heads below each other."""
        part = tensor[:, rows.start : rows.stop].to(self.dtype).transpose(1, 2)
        group = self.heads // self.kv_heads
        return part.reshape(self.batch * self.kv_heads, group * len(rows), tensor.shape[3])

    def put(self, target: Tensor, part: Tensor, rows: range) -> None:
        """Writes what `queries` would read."""
        turned = part.view(self.batch, self.heads, len(rows), target.shape[3]).transpose(1, 2)
        target[:, rows.start : rows.stop] = turned

    def scores(self, queries: Tensor, keys: Tensor, rows: range, columns: range) -> Tensor:
        """Products with biases, -inf where a key may not be seen."""
        scores = torch.bmm(queries, keys.mT)
        tile = self._by_head(scores, rows)
        if self.bias is not None:
            tile += _part(self.bias, rows, columns)
        if self.causal or self.window:
            offset = self.keys - self.length
            first, _ = span(rows.stop - 1 + offset, self.keys, self.causal, self.window)
            _, last = span(rows.start + offset, self.keys, self.causal, self.window)
            if columns.start < first or columns.stop > last:  # not all rows see all columns
                tile.masked_fill_(~visible(rows, columns, offset, self.causal, self.window, self.device), -torch.inf)
        if self.firsts is not None:
            places = torch.arange(columns.start, columns.stop, device=self.device)
            tile.masked_fill_(places < self.firsts[:, None, rows.start : rows.stop, None], -torch.inf)
        return scores

    def drop(self, shares: Tensor, rows: range, columns: range) -> None:
        """Zeros for what is dropped; what is kept is not divided by 1 - dropout."""
        if self.words is not None:
            keep = kept(self.words[..., rows.start : rows.stop], columns.start, len(columns), self.dropout)
            self._by_head(shares, rows).masked_fill_(~keep, 0)

    def add_to_bias(self, dbias: Tensor, dscores: Tensor, rows: range, columns: range) -> None:
        """Adds a tile of the scores' gradient, summed over the axes that the bias is repeated along."""
        tile = self._by_head(dscores, rows)
        repeated = [axis for axis in range(4) if dbias.shape[axis] == 1]
        target = _part(dbias, rows, columns)
        target += tile.sum(repeated, keepdim=True) if repeated else tile

    def _by_head(self, tile: Tensor, rows: range) -> Tensor:
        return tile.view(self.batch, self.heads, len(rows), tile.shape[2])


def _part(bias: Tensor, rows: range, columns: range) -> Tensor:
    """The tile's part of a bias, whose axes of size 1 stay."""
    part = bias[:, :, rows.start : rows.stop] if bias.shape[2] > 1 else bias
    return part[..., columns.start : columns.stop] if bias.shape[3] > 1 else part
