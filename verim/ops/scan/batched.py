"""The four algorithms on whole tensors: each call of `combine` handles many places along the axis at once.

All take and give flat lists of tensors and scan inclusively from the front. Tensors are taken apart by `split` and
`unbind`, whose gradient is one concatenation; the gradient of an indexed slice would fill a tensor of full size.
"""

from collections.abc import Callable

import torch

from verim.ops.scan.structures import Apply, Leaves

# What `chunked` goes by, in numbers of a tensor; measured in docs/LOG.md. A call of `combine` costs some microseconds
# whatever it gets, so few entries want few calls. From GRAIN on more entries a call gain nothing, and what one call
# writes the next should find in the cache. Where fewer than NARROW numbers lie beside each other (a cache line), every
# place of a chunk reads the same lines again: pairs read them the least often.
SMALL = 2**14
GRAIN = 2**17
NARROW = 16
Scan = Callable[[Apply, Leaves, int], Leaves]


def sequential(apply: Apply, leaves: Leaves, dim: int) -> Leaves:
    """The definition: one place after the other. n - 1 combines in n - 1 steps."""
    steps = [list(step) for step in zip(*(leaf.split(1, dim) for leaf in leaves), strict=True)]
    for place in range(1, len(steps)):
        steps[place] = apply(steps[place - 1], steps[place])
    return [torch.cat(parts, dim) for parts in zip(*steps, strict=True)]


def hillis_steele(apply: Apply, leaves: Leaves, dim: int) -> Leaves:
    """Every place takes in the one `offset` before it, and the offset doubles: fewest steps, most combines."""
    length, offset = leaves[0].shape[dim], 1
    while offset < length:
        combined = apply(_part(leaves, dim, 0, length - offset), _part(leaves, dim, offset, length - offset))
        leaves = _joined([_part(leaves, dim, 0, offset), combined], dim)
        offset *= 2
    return leaves


def blelloch(apply: Apply, leaves: Leaves, dim: int) -> Leaves:
    """Combine pairs on the way up the tree, hand prefixes down: Blelloch's two sweeps in the inclusive form.

    The inclusive form needs no identity: a right child's prefix is its parent's, so only left children combine.
    """
    return _in_chunks(apply, leaves, dim, 2, blelloch)


def chunked(apply: Apply, leaves: Leaves, dim: int) -> Leaves:
    """All chunks at once, each one place after the other; then their totals; then the totals into the chunks.

    The totals are scanned in the same way, down to so few entries that Hillis and Steele's fewer calls win.
    """
    length = leaves[0].shape[dim]
    entries = max(leaf.numel() for leaf in leaves)
    row = min(leaf.shape[dim + 1 :].numel() for leaf in leaves)
    chunk = chunk_length(length, entries, row)
    if chunk == length:
        return sequential(apply, leaves, dim)
    return hillis_steele(apply, leaves, dim) if chunk == 1 else _in_chunks(apply, leaves, dim, chunk, chunked)


def chunk_length(length: int, entries: int, row: int) -> int:
    """The length of the chunks of `chunked`: 1 means Hillis and Steele's scan, `length` the sequential one.

    `entries`: how many numbers the largest tensor has in all. `row`: how many lie beside each other at one place.
    """
    if entries < SMALL or length < 2:
        return 1
    if row < NARROW:
        return 2
    wanted = min(max(entries // GRAIN, 2), length)
    if wanted == length:
        return length
    return next((size for size in range(wanted, min(2 * wanted, length)) if length % size == 0), wanted)


def _in_chunks(apply: Apply, leaves: Leaves, dim: int, chunk: int, scan_totals: Scan) -> Leaves:
    length = leaves[0].shape[dim]
    count, rest = divmod(length, chunk)
    if count == 0 or length == 1:
        return hillis_steele(apply, leaves, dim)
    whole = _part(leaves, dim, 0, count * chunk) if rest else leaves
    columns = [leaf.unflatten(dim, (count, chunk)).unbind(dim + 1) for leaf in whole]
    places = [list(place) for place in zip(*columns, strict=True)]  # places[j]: place j of every chunk
    for j in range(1, chunk):
        places[j] = apply(places[j - 1], places[j])
    if count > 1:
        places[-1] = scan_totals(apply, places[-1], dim)
        before = _part(places[-1], dim, 0, count - 1)
        for j in range(chunk - 1):
            first, others = zip(*(leaf.split([1, count - 1], dim) for leaf in places[j]), strict=True)
            places[j] = _joined([list(first), apply(before, list(others))], dim)
    result = [torch.stack(columns, dim + 1).flatten(dim, dim + 1) for columns in zip(*places, strict=True)]
    if not rest:
        return result
    tail = hillis_steele(apply, _part(leaves, dim, count * chunk, rest), dim)
    last = _part(places[-1], dim, count - 1, 1)
    spread = [leaf.expand(like.shape) for leaf, like in zip(last, tail, strict=True)]
    return _joined([result, apply(spread, tail)], dim)


def _part(leaves: Leaves, dim: int, start: int, length: int) -> Leaves:
    return [leaf.narrow(dim, start, length) for leaf in leaves]


def _joined(parts: list[Leaves], dim: int) -> Leaves:
    return [torch.cat(pieces, dim) for pieces in zip(*parts, strict=True)]
