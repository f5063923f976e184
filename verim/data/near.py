"""Near duplicates by MinHash and locality-sensitive hashing.

A document is the set of its shingles: each five words in a row (Broder 1997, "On the resemblance and containment of
documents"), a word being a run of letters and digits without case, or a single character of three or more bytes of
UTF-8 (scripts that do not part words). The resemblance of two is J = |A ∩ B| / |A ∪ B|. Of each document is kept the
least value of 128 hash functions over its shingles; two documents agree in one of them with probability J, so the share
of those in which they agree estimates J without bias, with a standard deviation of √(J (1 − J) / 128), 0.035 at 0.8.

Pairs to look at are found by bands of r of the 128 values: two documents agree in one of b bands at least with
probability 1 − (1 − Jʳ)ᵇ (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4). r is the largest
for which a pair at the threshold is found with probability 0.99 or more: at 0.8, r = 6 and b = 21.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt32
from numba import njit

from verim.data.spool import Spool
from verim.ops.compiled import compiled

HASHES = 128
_WORDS = 5
_FOUND = 0.99
_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a
_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_FACTORS, _TERMS = np.random.default_rng(0).integers(2**64, size=(2, HASHES), dtype=np.uint64, endpoint=False)
_FACTORS |= np.uint64(1)


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many values each find pairs from `threshold` on (see above)."""
    fitting = [r for r in range(1, HASHES + 1) if found_probability(threshold, HASHES // r, r) >= _FOUND]
    rows = max(fitting, default=1)
    return HASHES // rows, rows


def found_probability(similarity: float, count: int, rows: int) -> float:
    """1 − (1 − Jʳ)ᵇ: that two documents of `similarity` J agree in one of `count` bands of `rows` values at least.

    >>> round(found_probability(0.8, 21, 6), 3), round(found_probability(0.5, 21, 6), 3)
    (0.998, 0.282)
    """
    return 1.0 - (1.0 - similarity**rows) ** count


def signature(text: bytes) -> UInt32[np.ndarray, " 128"]:
    """The least value of each hash function over the shingles of `text` (of fewer than five words: of all of them)."""
    result = np.full(HASHES, 2**32 - 1, np.uint32)
    _fill_signature(np.frombuffer(text, np.uint8), _FACTORS, _TERMS, result)
    return result


def resemblance(first: UInt32[np.ndarray, " 128"], second: UInt32[np.ndarray, " 128"]) -> float:
    """The estimate of J from two signatures."""
    return float((first == second).mean())


def keep_far(spool: Spool, threshold: float, watcher: Callable[[str, int, int], None]) -> int:
    """Leaves out each document that resembles an earlier one by an estimate of `threshold` or more; how many.

    Exactly: one that shares a band with an earlier one (which may itself be left out) and agrees with it in so many
    values. The signatures lie on the disk meanwhile, 512 bytes a document.
    """
    total, done = int(spool.sizes.sum()), 0
    if not len(spool):
        return 0
    path = spool.path.with_name("signatures")
    signatures = np.memmap(path, np.uint32, "w+", shape=(len(spool), HASHES))
    for number, text in enumerate(spool.texts()):
        signatures[number] = signature(text)
        done += len(text)
        watcher("looking for near duplicates", done, total)
    near = near_earlier(signatures, threshold)
    del signatures
    path.unlink()
    spool.keep(~near)
    return int(near.sum())


def near_earlier(signatures: UInt32[np.ndarray, "documents 128"], threshold: float) -> np.ndarray:
    """Of each document, whether it resembles an earlier one: a mask."""
    near = np.zeros(len(signatures), bool)
    count, rows = bands(threshold)
    least = int(np.ceil(threshold * HASHES - 1e-9))
    keys = np.empty(len(signatures), np.uint64)
    for band in range(count):
        _fill_keys(signatures, band * rows, rows, keys)
        order = np.argsort(keys, kind="stable")  # of equal keys the earlier documents first
        _mark_near(signatures, keys, order, least, near)
    return near


@njit(nogil=True)
def _take(shingle: np.uint64, factors: np.ndarray, terms: np.ndarray, least: np.ndarray) -> None:
    """Multiply-add-shift (Dietzfelbinger 1996) of a number whose bits are mixed before."""
    shingle = (shingle ^ (shingle >> np.uint64(31))) * _MULTIPLIER
    shingle ^= shingle >> np.uint64(29)
    for index in range(len(factors)):
        least[index] = min(least[index], np.uint32((shingle * factors[index] + terms[index]) >> np.uint64(32)))


@compiled
def _fill_signature(text: np.ndarray, factors: np.ndarray, terms: np.ndarray, least: np.ndarray) -> None:
    last = np.zeros(_WORDS, np.uint64)  # hashes of the last words, in a ring
    words, word, inside = 0, _OFFSET, False
    for place in range(len(text) + 1):
        letter = text[place] if place < len(text) else np.uint8(32)
        if 65 <= letter <= 90:
            letter += np.uint8(32)
        begins = letter >= 0xE0  # a character of three or four bytes: a word by itself
        continues = letter >= 0x80 or 97 <= letter <= 122 or 48 <= letter <= 57
        if inside and (begins or not continues):
            last[words % _WORDS] = word
            words += 1
            word, inside = _OFFSET, False
            if words >= _WORDS:
                shingle = _OFFSET
                for back in range(_WORDS):
                    shingle = (shingle ^ last[(words + back) % _WORDS]) * _PRIME
                    shingle ^= shingle >> np.uint64(32)
                _take(shingle, factors, terms, least)
        if continues:
            word, inside = (word ^ np.uint64(letter)) * _PRIME, True
    if words < _WORDS:
        shingle = _OFFSET + np.uint64(words)
        for back in range(words):
            shingle = (shingle ^ last[back]) * _PRIME
            shingle ^= shingle >> np.uint64(32)
        _take(shingle, factors, terms, least)


@compiled
def _fill_keys(signatures: np.ndarray, first: int, rows: int, keys: np.ndarray) -> None:
    """A hash of the values of one band, of every document."""
    for document in range(len(keys)):
        key = _OFFSET
        for row in range(rows):
            key = (key ^ np.uint64(signatures[document, first + row])) * _MULTIPLIER
            key ^= key >> np.uint64(32)
        keys[document] = key


@compiled
def _mark_near(signatures: np.ndarray, keys: np.ndarray, order: np.ndarray, least: int, near: np.ndarray) -> None:
    """Marks documents that agree in `least` values with an earlier one of the same key."""
    begin = 0
    for place in range(len(order)):
        document = order[place]
        if keys[document] != keys[order[begin]]:
            begin = place
        if near[document]:
            continue
        for other in range(begin, place):
            agreeing = 0
            for index in range(signatures.shape[1]):
                agreeing += signatures[document, index] == signatures[order[other], index]
            if agreeing >= least:
                near[document] = True
                break
