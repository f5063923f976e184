"""Moving elements to places that a sum scan finds: radix sort and stream compaction."""

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from verim.errors import InputError
from verim.ops.scan import associative_scan

_DIGIT = 4  # bits sorted by in a pass: 16 counters for each element

_SIGNED_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def radix_sort(x: Shaped[Tensor, "length"]) -> tuple[Shaped[Tensor, "length"], Int64[Tensor, "length"]]:
    """`x` in ascending order, and the permutation: sorted = x[permutation]. Stable, like torch.sort(stable=True).

    Any integer or floating-point type, and bool. A pass moves the elements to their places by four bits, the lowest
    first: an element's place is how many have a smaller digit plus how many before it have the same, and both counts
    are sums scanned at once for all sixteen digits. Each pass keeps the order of the one before (Blelloch, section
    1.3). Signed numbers sort by their bits with the sign flipped, floats by the integer whose order is theirs; NaN
    comes last, and -0 equals 0. Gradients flow through the values.

    Raises `InputError` for anything but a vector of such a type.

    >>> radix_sort(torch.tensor([3, -1, 2, -1]))
    (tensor([-1, -1,  2,  3]), tensor([1, 3, 2, 0]))
    """
    if x.dim() != 1 or x.is_complex():
        raise InputError(
            f"radix_sort: argument x is {x.dtype} of shape {tuple(x.shape)}, expected a vector of integers or floats"
        )
    keys = _ordered_bits(x.detach())
    permutation = torch.arange(len(x), device=x.device)
    for shift in range(0, 8 * x.element_size(), _DIGIT):
        places = _places_by_digit(keys >> shift & (2**_DIGIT - 1))
        keys = torch.empty_like(keys).scatter_(0, places, keys)
        permutation = torch.empty_like(permutation).scatter_(0, places, permutation)
    return x[permutation], permutation


def compact(x: Shaped[Tensor, "length *rest"], keep: Bool[Tensor, "length"]) -> Shaped[Tensor, "kept *rest"]:
    """The entries of `x` along its first axis where `keep` is true, moved together: x[keep].

    The place of an entry is how many are kept before it, a scanned sum; every entry then moves on its own, without
    knowing of the others (Blelloch, section 1.3). Gradients flow to `x`.

    >>> compact(torch.tensor([5, 6, 7, 8]), torch.tensor([True, False, False, True]))
    tensor([5, 8])
    """
    if x.dim() < 1 or keep.dtype is not torch.bool or keep.shape != x.shape[:1] or keep.device != x.device:
        raise InputError(
            f"compact: argument keep is {keep.dtype} of shape {tuple(keep.shape)} on {keep.device}, expected "
            f"torch.bool [length of x] = {tuple(x.shape[:1])} on {x.device}"
        )
    kept = associative_scan(torch.add, keep.long(), 0)
    count = int(kept[-1]) if len(kept) else 0
    sources = kept.new_empty(count + 1)  # one place more, for all that is dropped
    sources.scatter_(0, torch.where(keep, kept - 1, count), torch.arange(len(kept), device=x.device))
    return x[sources[:count]]


def _ordered_bits(x: Tensor) -> Tensor:
    """Integers whose lowest bits, as many as x has and read without a sign, have the order of x."""
    size = x.element_size()
    if x.is_floating_point():
        x = torch.where(x.isnan(), torch.nan, x + 0.0)  # one NaN, one zero
        bits = x.view(_SIGNED_OF_SIZE[size])
        x = torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)  # negative ones count backwards
    if x.dtype in (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        return x.view(torch.int64) if size == 8 else x.to(torch.int64)
    return x.to(torch.int64) ^ -(1 << (8 * size - 1))


def _places_by_digit(digits: Int64[Tensor, "length"]) -> Int64[Tensor, "length"]:
    """Where each element goes when they are sorted by their digits and keep their order otherwise."""
    if not len(digits):
        return digits
    is_digit = digits[:, None] == torch.arange(2**_DIGIT, device=digits.device)
    seen = associative_scan(torch.add, is_digit.to(torch.int32), 0).long()  # of each digit, up to each place
    before = associative_scan(torch.add, seen[-1], 0) - seen[-1]  # of all smaller digits
    return (before + seen).gather(1, digits[:, None])[:, 0] - 1
