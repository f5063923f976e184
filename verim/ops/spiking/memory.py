"""Arrays at addresses, of the type of a marker: what the compiled kernels of this folder read and write."""

from typing import Any

import numba
import numpy as np
from numba import njit
from numba.core import types

from verim.ops.vectors import intrinsic

INT32, INT64 = np.int32(0), np.int64(0)


@intrinsic
def _pointer(typing: Any, address: Any, marker: Any) -> Any:
    kind = types.CPointer(types.unliteral(marker))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, marker), generate


@njit(nogil=True)
def array_at(address: int, count: int, marker: Any) -> Any:
    """`count` numbers of the type of `marker` at `address`."""
    return numba.carray(_pointer(address, marker), (count,))  # type: ignore[attr-defined]  # numba writes no types
