"""Occupancy: how many warps of a kernel lie on a multiprocessor at once, what limits them, and the tail of a grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from verim.anatomy.devices import Device, Multiprocessor
from verim.errors import InputError

Limit = Literal["warps", "blocks", "registers", "shared memory"]


@dataclass(frozen=True)
class Occupancy:
    """What of a kernel lies on one multiprocessor at once.

    - `blocks`, `warps`: resident; 0 where a single block asks for more than there is.
    - `fraction`: of the warps that the multiprocessor can hold, which is what CUDA calls occupancy.
    - `limits`: the blocks that each resource alone would allow. `limited_by`: the scarcest, all of them where equal.
    """

    blocks: int
    warps: int
    fraction: float
    limits: Mapping[Limit, int]
    limited_by: tuple[Limit, ...]


def occupancy(device: Device, threads: int, registers: int, shared_bytes: int = 0) -> Occupancy:
    """Of a kernel with `threads` a block, `registers` of 32 bits a thread and `shared_bytes` of shared memory a block.

    With w = ⌈threads / warp⌉ warps a block, as NVIDIA's occupancy calculator (`cuda_occupancy.h`) has it,

        warps            ⌊warps of the multiprocessor / w⌋
        registers        ⌊s ⌊R / s / ⌈registers · warp⌉ᵤ⌋ / w⌋    R registers over s schedulers, in units of u a warp
        shared memory    ⌊S / ⌈shared_bytes + reserved⌉ᵤ⌋

    and at most so many blocks as the multiprocessor has places for.

    >>> from verim.anatomy.devices import device
    >>> found = occupancy(device("a100"), threads=256, registers=64)
    >>> found.blocks, found.fraction, found.limited_by
    (4, 0.5, ('registers',))

    Raises `InputError` for a device without multiprocessors (a CPU) and for a block that no device could have.
    """
    has = _multiprocessor(device)
    for name, value, most in (
        ("threads", threads, has.block_threads),
        ("registers", registers, has.thread_registers),
    ):
        if not 1 <= value <= most:
            raise InputError(f"{name}: got {value}, expected 1 to {most} on {device.name}")
    if shared_bytes < 0:
        raise InputError(f"shared_bytes: got {shared_bytes}, expected 0 or more")
    warps = math.ceil(threads / has.warp)
    of_a_warp = _rounded(registers * has.warp, has.register_unit)
    holds = has.registers // has.warp_unit // of_a_warp * has.warp_unit
    of_a_block = _rounded(shared_bytes + has.reserved_shared_bytes, has.shared_unit)
    limits: dict[Limit, int] = {
        "warps": has.warps // warps,
        "blocks": has.blocks,
        "registers": holds // warps,
    }
    if of_a_block:
        limits["shared memory"] = has.shared_bytes // of_a_block if shared_bytes <= has.block_shared_bytes else 0
    blocks = min(limits.values())
    return Occupancy(
        blocks=blocks,
        warps=blocks * warps,
        fraction=blocks * warps / has.warps,
        limits=limits,
        limited_by=tuple(name for name, count in limits.items() if count == blocks),
    )


@dataclass(frozen=True)
class Waves:
    """A grid of thread blocks over a device, wave after wave.

    - `count`: waves, the last one counted whole. `tail`: the share of places that the last one fills.
    - `efficiency`: of all places over all waves the share that is used: the grid takes 1 / efficiency of the time that
      it would take if blocks could be divided.
    """

    count: int
    tail: float
    efficiency: float


def waves(blocks: int, resident: int, multiprocessors: int) -> Waves:
    """Of `blocks` equal blocks where `resident` of them lie on each of `multiprocessors` at once.

    >>> waves(109, 1, 108)  # one block more than places: the second wave is nearly empty
    Waves(count=2, tail=0.009259259259259259, efficiency=0.5046296296296297)
    """
    for name, value in (("blocks", blocks), ("resident", resident), ("multiprocessors", multiprocessors)):
        if value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
    places = resident * multiprocessors
    count = math.ceil(blocks / places)
    return Waves(count, (blocks - (count - 1) * places) / places, blocks / (count * places))


def product_waves(device: Device, rows: int, columns: int, tile: tuple[int, int] = (128, 128)) -> Waves:
    """Of a matrix product of [rows, columns], a block for every tile of the result and one block a multiprocessor.

    `efficiency` counts the tiles at the edges by what lies inside the result: it is the most of the peak that a product
    of this shape can reach with such tiles, however long the sum.

    >>> from verim.anatomy.devices import device
    >>> [round(product_waves(device("a100"), rows, 1536).efficiency, 2) for rows in (1024, 1152, 1160)]
    [0.89, 1.0, 0.5]
    """
    tiles = math.ceil(rows / tile[0]) * math.ceil(columns / tile[1])
    found = waves(tiles, 1, device.multiprocessors)
    inside = rows * columns / (tiles * tile[0] * tile[1])
    return Waves(found.count, found.tail, found.efficiency * inside)


def _multiprocessor(device: Device) -> Multiprocessor:
    if device.multiprocessor is None:
        raise InputError(f"device: got {device.name}, of whose multiprocessors nothing is known; expected a GPU")
    return device.multiprocessor


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
