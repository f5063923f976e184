"""What attention moves between a device's memory and its multiprocessors, counted load by load and store by store.

The sequences of `length` N and `head_dim` d of one head; `fast_memory` is M, the numbers that lie in a multiprocessor's
own memory (Dao et al. 2022, FlashAttention, arXiv 2205.14135, section 3 and appendix B). Its Theorem 2: standard
attention moves Θ(N d + N²) numbers, tiled attention Θ(N² d² / M).
"""

import math
from dataclasses import dataclass

from verim.errors import InputError


@dataclass(frozen=True)
class Traffic:
    """Numbers read from and written to the device's memory."""

    read: int
    written: int

    @property
    def total(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Tiles:
    """Rows of a tile of queries, and of one of keys and values."""

    queries: int
    keys: int


def tiles_of(head_dim: int, fast_memory: int) -> Tiles:
    """Those of Algorithm 1, line 1: keys ⌈M / 4 d⌉, queries min(⌈M / 4 d⌉, d).

    >>> tiles_of(64, 48 * 1024 // 2)  # 48 KiB of 16-bit numbers
    Tiles(queries=64, keys=96)
    """
    if head_dim < 1 or fast_memory < 4 * head_dim:
        raise InputError(
            f"fast_memory: got {fast_memory} numbers for head_dim {head_dim}, expected at least {4 * head_dim}"
        )
    keys = math.ceil(fast_memory / (4 * head_dim))
    return Tiles(min(keys, head_dim), keys)


def standard_attention(length: int, head_dim: int) -> Traffic:
    """Of Algorithm 0, forward: Q and K read, S written; S read, P written; P and V read, O written.

    >>> standard_attention(1024, 64)
    Traffic(read=2293760, written=2162688)
    """
    _check(length, head_dim)
    rows, square = length * head_dim, length * length
    return Traffic(read=3 * rows + 2 * square, written=rows + 2 * square)


def tiled_attention(length: int, head_dim: int, fast_memory: int) -> Traffic:
    """Of Algorithm 1, forward: every tile of keys and values once; for each of them all queries, results, row maxima
    and row sums are read, and the last three written.

    >>> tiled_attention(1024, 64, 48 * 1024 // 2)
    Traffic(read=1595392, written=743424)
    """
    _check(length, head_dim)
    passes = math.ceil(length / tiles_of(head_dim, fast_memory).keys)
    rows = length * head_dim
    return Traffic(
        read=2 * rows + passes * (2 * rows + 2 * length),
        written=passes * (rows + 2 * length),
    )


def tiled_attention_by_queries(length: int, head_dim: int, tiles: Tiles, causal: bool = False) -> Traffic:
    """Of the order that later kernels and ours have: every tile of queries once, and for each of them the keys and
    values, with `causal` only up to its last position; results and one number a row (log-sum-exp) are written once
    (Dao 2023, FlashAttention-2, arXiv 2307.08691, algorithm 1).

    >>> tiled_attention_by_queries(1024, 64, Tiles(128, 64))
    Traffic(read=1114112, written=66560)
    """
    _check(length, head_dim)
    if min(tiles.queries, tiles.keys) < 1:
        raise InputError(f"tiles: got {tiles}, expected at least one row of each")
    keys = 0
    for begin in range(0, length, tiles.queries):
        last = min(begin + tiles.queries, length) if causal else length
        keys += min(length, math.ceil(last / tiles.keys) * tiles.keys)
    return Traffic(read=length * head_dim + 2 * keys * head_dim, written=length * head_dim + length)


def _check(length: int, head_dim: int) -> None:
    for name, value in (("length", length), ("head_dim", head_dim)):
        if value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
