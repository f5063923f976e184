"""Fresh memory on the CPU costs page faults: glibc maps and unmaps every large block. Keep freed blocks instead.

glibc serves blocks above a threshold by `mmap` and gives them back by `munmap`, so each large temporary tensor
faults its pages in anew: about 8 GB/s where a warm copy runs at over 50. With `M_MMAP_MAX = 0` and trimming off
(mallopt(3)) freed blocks stay with the process. What it brings to a training step stands in docs/LOG.md.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_blocks() -> bool:
    """Tells glibc's allocator to keep freed blocks in the process. True where it took effect (glibc only)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
