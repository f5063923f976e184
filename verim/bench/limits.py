"""What the machine can do, as loops that take their turn beside the ops: memory, vector arithmetic, matrix products.

A ceiling measured at another moment, or at another size, is another ceiling: a copy inside the caches is several times
as fast as one outside, and a busy machine slows both. So each loop does as much as the op needs, between the same
sides, and the fraction of the ceiling is a ratio like the others.
"""

import time
from collections.abc import Callable

import torch

from verim.bench.loops import arithmetic, streams
from verim.ops.cost import Cost

_MOST_FLOPS = 2e10  # of one turn of the matrix products; larger needs are extrapolated
_MOST_ELEMENTS = 2**26  # of one turn of the arithmetic
_TURN_SECONDS = 1e-3
_LONG_SECONDS = 2.0  # what takes so long is not run a second time before its first turn


def seconds_of(run: Callable[[], object], repeats: int = 1) -> float:
    """The time of one run, over so many."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


class Turn:
    """A run that is repeated within its turn, where it is too short for the clock."""

    def __init__(self, run: Callable[[], object]) -> None:
        first = seconds_of(run)  # compiles, and warms what there is to warm
        self._run = run
        self._repeats = 1 if first > _LONG_SECONDS else max(1, int(_TURN_SECONDS / max(seconds_of(run), 1e-7)))

    def seconds(self) -> float:
        """Of one run."""
        return seconds_of(self._run, self._repeats)


class Memory:
    """The bytes of a cost, streamed by all threads: `reads` arrays in and `writes` out, of `at_once` bytes together.

    The fastest of three ways counts: our own loop, the same with writes around the caches, and, where as much is read
    as written, torch's copy.
    """

    name = "memory"

    def __init__(self, cost: Cost, reads: int, writes: int, at_once: int) -> None:
        runs: list[tuple[Callable[[], object], int]] = [
            streams(at_once, reads, writes, past_caches) for past_caches in (False, True)
        ]
        if reads == writes:
            source = torch.ones(at_once // 8 or 1)
            target = torch.empty_like(source)
            runs.append((lambda: target.copy_(source), 8 * source.numel()))
        self._turns = [(Turn(run), cost.bytes / moved) for run, moved in runs]

    def seconds(self) -> float:
        """The time of moving the bytes once."""
        return min(turn.seconds() * times for turn, times in self._turns)


class Vectors:
    """The exponentials and multiply-adds of so many elements, each computed at once from operands in the first cache.

    Fewer instructions than `exponentials` and half of the other FLOPs cannot do it: a multiply-add is two.
    """

    name = "vectors"

    def __init__(self, cost: Cost, elements: int, exponentials: int) -> None:
        flops = (cost.flops + cost.recomputed_flops) / elements
        multiply_adds = int(flops - exponentials) // 2
        run, computed = arithmetic(min(elements, _MOST_ELEMENTS), exponentials, multiply_adds)
        self._turn, self._times = Turn(run), elements / computed

    def seconds(self) -> float:
        """The time of the arithmetic."""
        return self._turn.seconds() * self._times


class Products:
    """The FLOPs of a cost as products of square matrices by torch, in its data type or in float32, the faster one.

    Not every machine has instructions for halves: there the conversion to float32 is the faster way for an op too.
    """

    name = "products"

    def __init__(self, cost: Cost, dtype: torch.dtype) -> None:
        flops = cost.flops + cost.recomputed_flops
        size = next((size for size in (2048, 1024, 512, 256) if 2 * size**3 <= min(flops, _MOST_FLOPS)), 128)
        self._turns = [Turn(_product(size, each)) for each in dict.fromkeys((torch.float32, dtype))]
        self._times = flops / (2 * size**3)

    def seconds(self) -> float:
        """The time of the products."""
        return min(turn.seconds() for turn in self._turns) * self._times


def _product(size: int, dtype: torch.dtype) -> Callable[[], object]:
    left, right, product = (torch.ones(size, size, dtype=dtype) for _ in range(3))
    return lambda: torch.mm(left, right, out=product)
