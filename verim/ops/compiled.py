"""How the kernels are compiled: at first use, without Python's lock, and kept on the disk for the next process."""

import hashlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import njit


@cache
def _fingerprint(folder: Path) -> str:
    sources = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


FINGERPRINT = _fingerprint(Path(__file__).parent)  # of what the kernels share


@cache
def _warn_of_no_cache() -> None:
    warnings.warn(
        f"compiled kernels cannot be kept: neither {Path(__file__).parent} nor the user's cache directory can be "
        "written, so every process compiles for itself. Set NUMBA_CACHE_DIR to a directory that can be written",
        stacklevel=3,
    )


def compiled(function: Callable[..., Any]) -> Any:
    """`function` compiled by Numba when it is first called, cached beside its source, or in the user's cache.

    Numba recompiles when the function's own file changes, but looks at no file that it imports from: a kernel would
    live on with the vectors of yesterday. So the fingerprints of the shared sources and of the function's own folder
    become part of the cache's stamp.
    Where neither place can be written, every process compiles for itself, and a warning says so.
    """
    decorate = partial(njit, nogil=True, error_model="numpy")
    try:
        dispatcher: Any = decorate(cache=True)(function)
    except RuntimeError:  # Numba found no place for the cache
        _warn_of_no_cache()
        return decorate()(function)
    with suppress(AttributeError):  # Numba's internals; without them the cache is as Numba makes it
        file = dispatcher._cache._cache_file
        siblings = _fingerprint(Path(function.__code__.co_filename).parent)
        file._source_stamp = (file._source_stamp, FINGERPRINT, siblings)
    return dispatcher
