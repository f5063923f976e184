"""What is measured: an op at some shapes, others that compute the same, and the least that any of them has to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from verim.ops.cost import Cost

Run = Callable[..., Tensor]


class Limit(Protocol):
    """A part of the machine that is kept busy by a loop of ours; see `verim.bench.limits`."""

    name: str

    def seconds(self) -> float:
        """Runs the loop once: the time in which the machine does what the op needs of it."""
        ...


@dataclass(frozen=True)
class Peer:
    """Other software that computes the same.

    - `package`: the distribution that it comes from, whose version is recorded.
    - `load()`: imports it and gives a function of the case's tensors and options. Raises `ImportError`, or
      `AttributeError`, where it is not there.
    - `scope(case)`: whether it computes this case.
    - `compared`: False for what does something else, as a copy: it is timed beside the others, without a check.
    """

    name: str
    package: str
    load: Callable[[], Run]
    scope: Callable[["Case"], bool] = lambda case: True
    compared: bool = True


@dataclass(frozen=True)
class Case:
    """One shape: `tensors()` makes the op's tensors, those that train with `requires_grad`.

    - `forward`, `both`: the costs of the forward pass, and of forward and backward pass.
    - `options`: keyword arguments of every side.
    - `random`: each side draws for itself, as with dropout: their results cannot be compared.
    """

    label: str
    tensors: Callable[[], Sequence[Tensor]]
    forward: Cost
    both: Cost
    dtype: torch.dtype = torch.float32
    options: tuple[tuple[str, Any], ...] = ()
    random: bool = False


@dataclass(frozen=True)
class Subject:
    """An op with its cases. `limits(case)` makes the machine's loops for the forward pass and for both passes.

    - `axes`: what the numbers of a case's label are.
    - `cases(quick)`: those of the record, or with `quick` small ones that take a moment.
    """

    name: str
    axes: str
    ours: Run
    peers: tuple[Peer, ...]
    cases: Callable[[bool], Sequence[Case]]
    limits: Callable[[Case], tuple[Sequence[Limit], Sequence[Limit]]]
