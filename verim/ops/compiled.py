"""How the kernels are compiled: at first use, without Python's lock, and kept on the disk for the next process."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import njit


def _fingerprint() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


FINGERPRINT = _fingerprint()  # of what the kernels share


def compiled(function: Callable[..., Any]) -> Any:
    """`function` compiled by Numba when it is first called, cached beside its source, or in the user's cache.

    Numba recompiles when the function's own file changes, but looks at no file that it imports from: a kernel would
    live on with the vectors of yesterday. So the fingerprint of the shared sources becomes part of the cache's stamp.
    """
    dispatcher: Any = njit(cache=True, nogil=True, error_model="numpy")(function)
    with suppress(AttributeError):  # Numba's internals; without them the cache is as Numba makes it
        file = dispatcher._cache._cache_file
        file._source_stamp = (file._source_stamp, FINGERPRINT)
    return dispatcher
