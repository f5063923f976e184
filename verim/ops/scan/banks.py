"""A model of the memory banks of a GPU's shared memory: which accesses wait for each other, and how padding helps.

Shared memory is divided into banks; consecutive words lie in consecutive banks, and each bank serves one word at a
time. The threads of a warp issue an instruction together. It takes as many turns as the busiest bank has different
words to serve; threads that want the same word share it. Harris et al., Parallel Prefix Sum (Scan) with CUDA, GPU
Gems 3, chapter 39, section 39.2.3.

It is a model: it counts turns, not seconds. `verim.ops.scan.banks_gpu` measures the same on a GPU.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verim.errors import InputError
from verim.ops.scan.algorithms import ObservedScan


@dataclass(frozen=True)
class Banks:
    """The shared memory of one multiprocessor.

    - `count`: the number of banks, 32 since NVIDIA's compute capability 2.0 (CUDA C++ Programming Guide, compute
      capabilities); 16 on the GPUs of GPU Gems 3.
    - `width`: bytes of a bank's word.
    - `warp`: how many threads issue an instruction together.
    """

    count: int = 32
    width: int = 4
    warp: int = 32

    def __post_init__(self) -> None:
        for name in ("count", "width", "warp"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"Banks: argument {name} is {value}, expected at least 1")

    def padded(self, address: int) -> int:
        """Where element `address` lies with the padding of GPU Gems 3, CONFLICT_FREE_OFFSET.

        One element is left free after every `count` elements, and one more after every count²: no stride that is a
        power of two up to count² then meets a conflict. Others may: 31 · i, with an element free after each 32, is
        almost 32 · i. (The macro printed there adds before it shifts; this is what it means.)
        """
        return address + address // self.count + address // self.count**2


@dataclass(frozen=True)
class Conflicts:
    """How long the accesses of a step, or of several, take.

    - `turns`: how many turns the banks need, all warps and instructions together.
    - `ideal`: how many they would need if the words were spread evenly over the banks.
    - `worst`: the most turns a single instruction of a warp takes: 32 is a 32-way conflict.
    """

    turns: int
    ideal: int
    worst: int

    @property
    def lost(self) -> float:
        """The fraction of the bandwidth that conflicts cost: 0 without any, 31/32 for a 32-way conflict."""
        return 1 - self.ideal / self.turns if self.turns else 0.0

    def __add__(self, other: "Conflicts") -> "Conflicts":
        return Conflicts(self.turns + other.turns, self.ideal + other.ideal, max(self.worst, other.worst))


NONE = Conflicts(0, 0, 0)


def conflicts(
    scan: ObservedScan, banks: Banks | None = None, padded: bool = False, element_bytes: int = 4
) -> tuple[Conflicts, ...]:
    """The conflicts of each step of an observed scan, in order; `sum(…, start=NONE)` is the whole.

    With `padded` the elements lie as `Banks.padded` says. An element wider than a word lies in several.

    >>> from verim.ops.scan.algorithms import blelloch
    >>> scan = blelloch(int.__add__, range(1024), 0)
    >>> max(step.worst for step in conflicts(scan)), max(step.worst for step in conflicts(scan, padded=True))
    (32, 1)
    """
    return tuple(access_conflicts(step.accesses, banks, padded, element_bytes) for step in scan.steps)


def strided(stride: int, banks: Banks | None = None, padded: bool = False, element_bytes: int = 4) -> Conflicts:
    """The conflicts of one warp whose thread i touches element `stride` · i.

    >>> strided(32).worst, strided(32).lost, strided(32, padded=True).worst
    (32, 0.96875, 1)
    """
    if stride < 0:
        raise InputError(f"strided: argument stride is {stride}, expected at least 0")
    banks = banks or Banks()
    return access_conflicts(
        [tuple(range(0, stride * banks.warp, stride)) if stride else (0,) * banks.warp], banks, padded, element_bytes
    )


def access_conflicts(
    accesses: Iterable[Sequence[int]], banks: Banks | None = None, padded: bool = False, element_bytes: int = 4
) -> Conflicts:
    """The conflicts of any instructions: of each, the address that thread 0, 1, … touches, in elements.

    Raises `InputError` for a negative address or element size.
    """
    banks = banks or Banks()
    if element_bytes < 1:
        raise InputError(f"conflicts: argument element_bytes is {element_bytes}, expected at least 1")
    total = NONE
    for access in accesses:
        if access and min(access) < 0:
            raise InputError(f"conflicts: address {min(access)} is negative: addresses count elements from 0")
        for start in range(0, len(access), banks.warp):
            total += _of_warp(access[start : start + banks.warp], banks, padded, element_bytes)
    return total


def _of_warp(addresses: Sequence[int], banks: Banks, padded: bool, element_bytes: int) -> Conflicts:
    words: set[int] = set()
    for address in addresses:
        start = (banks.padded(address) if padded else address) * element_bytes
        words.update(range(start // banks.width, (start + element_bytes - 1) // banks.width + 1))
    served: dict[int, int] = defaultdict(int)
    for word in words:
        served[word % banks.count] += 1
    turns = max(served.values())
    return Conflicts(turns, -(-len(words) // banks.count), turns)
