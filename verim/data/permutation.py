"""The order in which an epoch shows its windows: a permutation that any place of can be asked for by itself.

Nothing of the length of the data is held. A number below `size` is written as left · columns + right, and each half in
turn is moved by a hash of the other (a Feistel network over mixed radices, with the rounds' keys from the seed; Black
and Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3). What leaves the range goes through again.

Data much larger than memory must not be read page by page in random order. So windows lie in blocks of neighbours,
blocks are permuted, and the windows of a pool of blocks are permuted together: the data of one pool are read while the
pool lasts. Data of no more than a pool are permuted whole.
"""

from typing import Any

import numpy as np
from numba import njit

from verim.ops.compiled import compiled

_ROUNDS = 3
_ODD = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)


@njit(nogil=True)
def _mix(number: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    number = (number ^ (number >> np.uint64(30))) * _FIRST
    number = (number ^ (number >> np.uint64(27))) * _SECOND
    return number ^ (number >> np.uint64(31))


@njit(nogil=True)
def _permuted(place: np.uint64, size: np.uint64, key: np.uint64) -> np.uint64:
    """Where `place` goes in the permutation of 0 ... size − 1 that `key` names."""
    rows = np.uint64(np.ceil(np.sqrt(float(size))))
    columns = (size + rows - _ONE) // rows
    while True:
        left, right, state = place // columns, place % columns, key
        for _ in range(_ROUNDS):
            state += _ODD
            left = (left + _mix(right ^ _mix(state))) % rows
            state += _ODD
            right = (right + _mix(left ^ _mix(state))) % columns
        place = left * columns + right
        if place < size:
            return place


@compiled
def fill_starts(
    target: np.ndarray, first: Any, epoch: Any, windows: Any, length: Any, seed: Any, block: Any, pool: Any
) -> None:
    """target[i] = where the window begins that stands at place first + i of the epoch, of `windows` in all.

    The first window begins at an offset of the epoch's own below `length`, each other one `length` behind another.
    `block` windows lie side by side, `pool` blocks are shown together. All numbers are unsigned, of 64 bits.
    """
    of_epoch = _mix(_mix(seed + _ODD) ^ (epoch + _ODD))
    offset = _mix(of_epoch) % length
    blocks = (windows + block - _ONE) // block
    for index in range(len(target)):
        place = first + np.uint64(index)
        while True:
            begin = place // (pool * block) * pool  # the pool's first block
            size = min(pool, blocks - begin) * block
            inside = _permuted(place - begin * block, size, _mix(of_epoch + begin + _ONE))
            place = _permuted(begin + inside // block, blocks, of_epoch) * block + inside % block
            if place < windows:
                break
        target[index] = place * length + offset
