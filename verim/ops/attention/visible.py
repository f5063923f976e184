"""Which keys a query may see, before any bias: the causal mask and the window.

Positions are aligned at the end: query i of `length` stands at position i + keys - length among the keys.
"""

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor


def span(position: int, keys: int, causal: bool, window: int) -> tuple[int, int]:
    """First key seen at a position and the one after the last, within 0 ... keys; equal or reversed: none.

    `window` 0 means none.
    """
    first = position - window + 1 if window else 0
    last = position + 1 if causal else position + window if window else keys
    return max(first, 0), min(last, keys)


def pairs(length: int, keys: int, causal: bool, window: int) -> int:
    """How many pairs of a query and a key that it sees there are."""
    offset = keys - length
    to_last = _sum_clamped(offset + (1 if causal else window), length, keys) if causal or window else length * keys
    to_first = _sum_clamped(offset - window + 1, length, keys) if window else 0
    return to_last - to_first


def _sum_clamped(start: int, count: int, limit: int) -> int:
    """Sum of min(max(start + i, 0), limit) over i < count."""
    low = min(max(-start, 0), count)
    high = min(max(limit - start, low), count)
    return (high - low) * (2 * start + low + high - 1) // 2 + (count - high) * limit


def visible(
    rows: range, columns: range, offset: int, causal: bool, window: int, device: torch.device
) -> Bool[Tensor, "rows columns"]:
    """Whether a query of `rows` sees a key of `columns`, where `offset` is keys - length."""
    ahead = torch.arange(columns.start, columns.stop, device=device) - offset
    ahead = ahead - torch.arange(rows.start, rows.stop, device=device)[:, None]  # how far the key lies in the future
    last = 0 if causal else window - 1 if window else columns.stop + rows.stop
    seen = ahead <= last if causal or window else torch.ones_like(ahead, dtype=torch.bool)
    return seen & (ahead > -window) if window else seen


def spans_of(documents: Int[Tensor, "batch length"]) -> Int32[Tensor, "2 batch length"]:
    """Of each position, the first one of its document and the one after its last: runs of equal numbers.

    >>> spans_of(torch.tensor([[4, 4, 5, 4]]))
    tensor([[[0, 0, 2, 3]],
    <BLANKLINE>
            [[2, 2, 3, 4]]], dtype=torch.int32)
    """
    length = documents.shape[1]
    places = torch.arange(length, device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    firsts = torch.where(begins, places, 0).cummax(1).values
    ends = torch.full_like(firsts, length)
    ends[:, :-1] = torch.where(begins[:, 1:], places[1:], length)
    lasts = ends.flip(1).cummin(1).values.flip(1)
    return torch.stack([firsts, lasts]).int()
