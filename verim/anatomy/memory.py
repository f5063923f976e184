"""The memory of a step as values: what lay where, when, and the highest point."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Category = Literal["parameters", "optimiser", "gradients", "activations", "temporary", "caches", "inputs"]
CATEGORIES: tuple[Category, ...] = (
    "parameters",
    "optimiser",
    "gradients",
    "activations",
    "temporary",
    "caches",
    "inputs",
)
"""Parameters with the modules' buffers; the optimiser's state; gradients; activations, kept from the forward pass for
the backward pass; temporary buffers; caches, which modules keep outside their buffers; the batch."""


@dataclass(frozen=True)
class Timeline:
    """Bytes over the step: `bytes[category]` at each of `seconds` from its begin (numbers of ops in a prediction).

    `parts`: at which second each part began, in order. Thinned to a few thousand points; every maximum is kept.
    """

    seconds: tuple[float, ...]
    bytes: Mapping[str, tuple[int, ...]]
    parts: tuple[tuple[str, float], ...]

    def totals(self) -> tuple[int, ...]:
        """Of all categories together."""
        return tuple(map(sum, zip(*self.bytes.values(), strict=True))) if self.bytes else ()


@dataclass(frozen=True)
class ModuleMemory:
    """Bytes of a module itself, its children's apart. `activations`: the most that lay there for the backward pass."""

    name: str
    parameters: int
    gradients: int
    optimiser: int
    activations: int


@dataclass(frozen=True)
class Memory:
    """The memory of a step in bytes.

    - `peak_bytes`: the most that lay in tensors at one time, with the buffers that ops hold inside.
    - `at_peak`: of it, by category. `peak_part`: the part in which it happened, `peak_op` and `peak_module` in what.
    - `allocator_peak_bytes`: the same from the allocator's own records; None where none were taken.
    - `process_peak_bytes`: the most memory the process ever had resident (its code and libraries too).
    """

    source: Literal["observed", "predicted"]
    peak_bytes: int
    at_peak: Mapping[str, int]
    peak_part: str
    peak_op: str
    peak_module: str
    timeline: Timeline
    modules: tuple[ModuleMemory, ...] = ()
    allocator_peak_bytes: int | None = None
    process_peak_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


EMPTY = Memory("observed", 0, {}, "", "", "", Timeline((), {}, ()))
"""Of a step in which nothing was observed."""
