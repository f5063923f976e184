"""The three classical scans as they are taught, one step after the other, every step observed.

Work, depth and memory accesses are counted while the algorithm runs, never computed from a formula. The algorithms
take any sequence of Python values (numbers, strings, matrices) and any associative function of two of them, which
need not commute: the left operand is always the earlier one. For tensors to compute with there is
`verim.ops.associative_scan`; how memory banks serve the accesses tells `verim.ops.scan.banks`.

Counts for n places, n a power of two (every one is in the tests):

| algorithm     | work: combines    | depth: dependent steps | result    |
|---------------|-------------------|------------------------|-----------|
| sequential    | n - 1             | n - 1                  | inclusive |
| hillis_steele | n log2 n - (n - 1)| log2 n                 | inclusive |
| blelloch      | 2 (n - 1)         | 2 log2 n               | exclusive |
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Combine = Callable[[Any, Any], Any]
Access = tuple[int, ...]  # the addresses, in elements, that the threads 0, 1, … touch in one instruction


@dataclass(frozen=True)
class Step:
    """What happens between two barriers: the combines, and the memory instructions of the threads in their order."""

    combines: int
    accesses: tuple[Access, ...]


@dataclass(frozen=True)
class ObservedScan:
    """The result of an algorithm with all that it did.

    - `result`: one value for each place.
    - `exclusive`: whether `result[i]` combines the values before place i (Blelloch), not those up to it.
    - `total`: all values combined; None for an empty scan.
    - `steps`: in order. `accesses` of a step are its memory-bank trace, see `verim.ops.scan.banks.conflicts`.
    """

    result: tuple[Any, ...]
    exclusive: bool
    total: Any
    steps: tuple[Step, ...]

    @property
    def work(self) -> int:
        """How many times `combine` was called."""
        return sum(step.combines for step in self.steps)

    @property
    def depth(self) -> int:
        """How many steps combined anything: with a thread for every pair, the time between first and last."""
        return sum(step.combines > 0 for step in self.steps)

    @property
    def inclusive(self) -> tuple[Any, ...]:
        """The inclusive scan, whichever the algorithm gives."""
        return self.result if not self.exclusive or not self.result else (*self.result[1:], self.total)


class _Machine:
    """A memory whose every access is written down, and threads that combine between barriers."""

    def __init__(self, combine: Combine, memory: Iterable[Any]) -> None:
        self._function = combine
        self.memory = list(memory)
        self.steps: list[Step] = []
        self._combines = 0
        self._accesses: list[Access] = []

    def load(self, addresses: Iterable[int]) -> list[Any]:
        """One load instruction: thread i reads the i-th address."""
        access = tuple(addresses)
        self._accesses.append(access)
        return [self.memory[address] for address in access]

    def store(self, addresses: Iterable[int], values: Iterable[Any]) -> None:
        """One store instruction: thread i writes the i-th value to the i-th address."""
        access = tuple(addresses)
        self._accesses.append(access)
        for address, value in zip(access, values, strict=True):
            self.memory[address] = value

    def combine(self, lefts: Iterable[Any], rights: Iterable[Any]) -> list[Any]:
        """Each thread combines its pair."""
        results = [self._function(left, right) for left, right in zip(lefts, rights, strict=True)]
        self._combines += len(results)
        return results

    def barrier(self) -> None:
        """The end of a step: all threads wait for each other."""
        self.steps.append(Step(self._combines, tuple(access for access in self._accesses if access)))
        self._combines, self._accesses = 0, []

    def scanned(self, result: Sequence[Any], exclusive: bool, total: Any) -> ObservedScan:
        return ObservedScan(tuple(result), exclusive, total, tuple(self.steps))


def sequential(combine: Combine, values: Sequence[Any]) -> ObservedScan:
    """One thread, one place after the other; the running value stays in a register. Any length.

    >>> scan = sequential(lambda left, right: left + right, "scan")
    >>> scan.result, scan.work, scan.depth
    (('s', 'sc', 'sca', 'scan'), 3, 3)
    """
    machine = _Machine(combine, values)
    running = machine.load([0]) if machine.memory else []
    for place in range(1, len(machine.memory)):
        running = machine.combine(running, machine.load([place]))
        machine.store([place], running)
        machine.barrier()
    return machine.scanned(machine.memory, False, running[0] if running else None)


def hillis_steele(combine: Combine, values: Sequence[Any]) -> ObservedScan:
    """Every place takes in the value `offset` places before it, and the offset doubles. Any length, no padding.

    Hillis and Steele, Data Parallel Algorithms, Communications of the ACM 29 (12), 1986, p. 1172. As in Harris et
    al., Parallel Prefix Sum (Scan) with CUDA, GPU Gems 3, chapter 39, algorithm 2, there are two buffers, so that no
    thread reads what another has already overwritten: addresses 0 … n-1 and n … 2n-1 by turns. A place with nothing
    `offset` before it is copied, which is no work.

    >>> scan = hillis_steele(lambda left, right: left + right, "scan")
    >>> scan.result, scan.work, scan.depth
    (('s', 'sc', 'sca', 'scan'), 5, 2)
    """
    length = len(values)
    machine = _Machine(combine, [*values, *values])
    source, target, offset = 0, length, 1
    while offset < length:
        own = machine.load(range(source, source + length))
        earlier = machine.load(range(source, source + length - offset))
        combined = machine.combine(earlier, own[offset:])
        machine.store(range(target, target + length), own[:offset] + combined)
        machine.barrier()
        source, target, offset = target, source, 2 * offset
    result = machine.memory[source : source + length]
    return machine.scanned(result, False, result[-1] if result else None)


def blelloch(combine: Combine, values: Sequence[Any], identity: Any) -> ObservedScan:
    """The work-efficient scan in two sweeps over a balanced tree, in place; the result is exclusive.

    Blelloch, Prefix Sums and Their Applications, CMU-CS-90-190, 1990, section 1.2; Harris et al., GPU Gems 3,
    chapter 39, algorithms 3 and 4. The up-sweep leaves in every node the sum of its leaves (n - 1 combines). The
    root becomes the identity. In the down-sweep each node hands its prefix to its left child, and the prefix
    combined with the left child's sum to its right child (n - 1 combines).

    Any length: other lengths than powers of two are filled up with `identity` at the end, so they have the work and
    depth of the next power of two. `identity` has to be neutral on both sides.

    >>> scan = blelloch(lambda left, right: left + right, "scan", "")
    >>> scan.result, scan.total, scan.work, scan.depth
    (('', 's', 'sc', 'sca'), 'scan', 6, 4)
    """
    length = len(values)
    size = 1 << max(length - 1, 0).bit_length()
    machine = _Machine(combine, [*values, *[identity] * (size - length)])
    half = 1
    while half < size:
        lefts, rights = range(half - 1, size, 2 * half), range(2 * half - 1, size, 2 * half)
        machine.store(rights, machine.combine(machine.load(lefts), machine.load(rights)))
        machine.barrier()
        half *= 2
    total = machine.memory[-1] if length else None
    machine.store([size - 1], [identity])
    machine.barrier()
    while half > 1:
        half //= 2
        lefts, rights = range(half - 1, size, 2 * half), range(2 * half - 1, size, 2 * half)
        sums, prefixes = machine.load(lefts), machine.load(rights)
        machine.store(lefts, prefixes)
        machine.store(rights, machine.combine(prefixes, sums))
        machine.barrier()
    return machine.scanned(machine.memory[:length], True, total)
