"""How large the tiles of the attention kernels are on a CUDA device.

No rule here was timed. The sizes were chosen by what the compiler says of each kernel for an A100 and an H100: of the
tiles that leave (nearly) every number in registers, those with the most work for each byte that they load.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

_WITH_227_KIB = (90, 100, 103)  # of shared memory a program: H100, H200, B200, B300


class Tiles(NamedTuple):
    """Queries and keys of a tile, warps of a program, and how many tiles are on their way from memory."""

    rows: int
    columns: int
    warps: int
    stages: int


# By kernel and channels of a head: for halves, for halves with a bias or dropout, which want registers too, and for
# float32. All fit in the 99 KiB of shared memory that every device has since the A100.
_TILES = {
    ("_forward", 64): (Tiles(128, 64, 4, 3), Tiles(128, 64, 8, 3), Tiles(64, 32, 4, 2)),
    ("_forward", 128): (Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 2), Tiles(32, 32, 8, 2)),
    ("_forward", 256): (Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 2), Tiles(16, 32, 4, 1)),
    ("_backward_of_keys", 64): (Tiles(64, 128, 8, 2), Tiles(64, 64, 8, 2), Tiles(32, 32, 4, 1)),
    ("_backward_of_keys", 128): (Tiles(32, 128, 8, 2), Tiles(32, 64, 8, 1), Tiles(32, 16, 4, 1)),
    ("_backward_of_keys", 256): (Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1), Tiles(16, 16, 4, 1)),
    ("_backward_of_queries", 64): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 1)),
    ("_backward_of_queries", 128): (Tiles(64, 64, 8, 1), Tiles(64, 32, 4, 1), Tiles(16, 32, 4, 1)),
    ("_backward_of_queries", 256): (Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1), Tiles(16, 16, 4, 1)),
}
_TILES_IN_227_KIB = _TILES | {
    ("_forward", 128): (Tiles(128, 64, 8, 3), Tiles(128, 32, 8, 2), Tiles(32, 32, 8, 2)),
    ("_forward", 256): (Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 2), Tiles(16, 32, 4, 2)),
    ("_backward_of_queries", 128): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(16, 32, 4, 1)),
    ("_backward_of_queries", 256): (Tiles(64, 64, 8, 2), Tiles(32, 32, 4, 1), Tiles(16, 16, 4, 1)),
}
_ANY = Tiles(16, 16, 4, 1)


def architecture_of(like: Tensor) -> int:
    """80 for an A100, 90 for an H100; 0 in Triton's interpreter."""
    if triton.knobs.runtime.interpret:
        return 0
    with torch.cuda.device_of(like):
        return int(triton.runtime.driver.active.get_current_target().arch)


def padded_to(dim: int) -> int:
    """The channels of a tile for heads of `dim`."""
    return max(16, int(triton.next_power_of_2(dim)))


def tiles_of(kernel: str, like: Tensor, more: bool) -> Tiles:
    """For heads as wide as those of `like`; `more`: there is a bias or dropout."""
    architecture, place = architecture_of(like), (kernel, max(64, padded_to(like.shape[3])))
    if not architecture or place not in _TILES:
        return _ANY
    table = _TILES_IN_227_KIB if architecture in _WITH_227_KIB else _TILES
    return table[place][2 if like.dtype is torch.float32 else int(more)]
