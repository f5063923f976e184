"""Columns of numbers, checked where they come in."""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from verim.errors import InputError


def positive(name: str, values: ArrayLike) -> Float[np.ndarray, "runs"]:
    """A list of numbers as an array. Raises `InputError` naming the entry that is not finite and above 0."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"{name} has {array.ndim} dimensions: give a list with one number for each run")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if wrong.size:
        raise InputError(f"{name}[{wrong[0]}] is {array[wrong[0]]}: every {name} must be finite and above 0")
    return array
