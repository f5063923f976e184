"""What the algorithms of `associative_scan` cost, in combines: FLOPs depend on what is combined."""

from dataclasses import dataclass
from typing import NamedTuple

from verim.errors import InputError
from verim.ops.scan.batched import chunk_length


@dataclass(frozen=True)
class Combines:
    """The cost of a scan in units of its operation.

    - `work`: how many pairs are combined.
    - `depth`: how many combines at most hang on each other, one on the result of another: the time with endless
      threads.
    - `calls`: how many calls of `combine` that makes, each for many pairs.
    """

    work: int
    depth: int
    calls: int


def combines(algorithm: str, length: int, entries: int = 0, row: int = 1) -> Combines:
    """What `associative_scan` by `algorithm` takes for `length` places.

    `chunked` shapes its trees by the size of the tensors: `entries`, how many numbers the largest has in all, and
    `row`, how many lie beside each other at one place (`length` · `row` · what lies before the axis = `entries`).

    For powers of two: sequential n - 1 work and depth; hillis_steele n log2 n - (n - 1) and log2 n; blelloch, in the
    inclusive form, 2 (n - 1) - log2 n and 2 (log2 n - 1) from n = 4 on.

    >>> combines("blelloch", 8)
    Combines(work=11, depth=4, calls=5)
    """
    if algorithm not in ("sequential", "hillis_steele", "blelloch", "chunked"):
        raise InputError(
            f"combines: argument algorithm is {algorithm!r}, expected sequential, hillis_steele, blelloch or chunked"
        )
    tally = _tally(algorithm, length, entries, row)
    return Combines(tally.work, max(tally.last, tally.others), tally.calls)


class _Tally(NamedTuple):
    """`last`, `others`: the depth of the last place, and the largest of the other places."""

    work: int
    calls: int
    last: int
    others: int


def _tally(algorithm: str, length: int, entries: int, row: int) -> _Tally:
    if length < 2:
        return _Tally(0, 0, 0, 0)
    chunk = chunk_length(length, entries, row) if algorithm == "chunked" else 2
    if algorithm == "sequential" or (algorithm == "chunked" and chunk == length):
        return _Tally(length - 1, length - 1, length - 1, length - 2)
    if algorithm == "hillis_steele" or chunk == 1:
        steps = (length - 1).bit_length()
        return _Tally(steps * length - (2**steps - 1), steps, steps, (length - 2).bit_length())
    count, rest = divmod(length, chunk)
    totals = _tally(algorithm, count, entries * count // length, row)
    tail = _tally("hillis_steele", rest, 0, 1)
    up, down = chunk - 1, chunk - 1 if count > 1 else 0  # calls for all chunks; for all chunks but the first
    total = up + totals.last
    before_rest = up + totals.others + 1 if down else up - 1  # the deepest place of the chunks but their last
    after = max(total, tail.last, tail.others) + 1  # the deepest place of the rest
    return _Tally(
        work=up * count + totals.work + down * (count - 1) + tail.work + rest,
        calls=up + totals.calls + down + tail.calls + (rest > 0),
        last=after if rest else total,
        others=max(before_rest, total, after if rest > 1 else 0) if rest else before_rest,
    )
