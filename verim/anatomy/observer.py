"""One step seen op by op: time, cost, module and memory of everything that torch's dispatcher is asked for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from verim.anatomy.attribution import Attribution
from verim.anatomy.clock import Clock
from verim.anatomy.costs import OpCost, cost_of, data_type, tensors_in
from verim.anatomy.parts import Parts
from verim.anatomy.storages import Storages
from verim.anatomy.temporaries import temporary_bytes

BEFORE_BACKWARD = frozenset({"forward", "loss"})
"""The parts whose results, as far as they live when the backward pass begins, are activations."""


@dataclass(frozen=True)
class Call:
    """A call of an operator. `began`: on the host, from the step's begin; `begin` and `end` are marks of a clock."""

    name: str
    part: str
    module: str
    dtype: str
    shape: tuple[int, ...]
    cost: OpCost
    is_recomputed: bool
    began: float
    begin: Any
    end: Any


Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def run_it(operator: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """What the operator computes."""
    return operator(*arguments, **keywords)


class Observer(TorchDispatchMode):
    """Sees every op while it is entered. Storages are followed whether ops are timed or not."""

    supports_higher_order_operators = True

    def __init__(
        self,
        clock: Clock,
        parts: Parts,
        attribution: Attribution,
        storages: Storages,
        run: Run = run_it,
    ) -> None:
        super().__init__()
        self._clock, self._parts, self._attribution, self._storages = clock, parts, attribution, storages
        self._run = run
        self._start = time.perf_counter()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        part, module = self._parts.current, self._attribution.current()
        recomputed = self._attribution.is_recomputing()
        began = time.perf_counter() - self._start
        begin = self._clock.mark()
        result = self._run(operator, arguments, keywords)
        end = self._clock.mark()
        if not hasattr(operator, "_schema"):  # a higher-order operator: what is inside comes by itself
            return result
        given = [*arguments, *keywords.values()]
        tensors = [*tensors_in(given)]
        shape = max((tuple(tensor.shape) for tensor in tensors), key=_size, default=())
        name = f"{operator.namespace}.{operator._overloadpacket.__name__}"
        cost = cost_of(operator, arguments, keywords, result)
        self.calls.append(
            Call(name, part, module, data_type(given, result), shape, cost, recomputed, began, begin, end)
        )
        self._follow(name, part, module, recomputed, tensors, result, temporary_bytes(operator, arguments))
        return result

    def _follow(
        self,
        name: str,
        part: str,
        module: str,
        recomputed: bool,
        tensors: list[Tensor],
        result: Any,
        transient: int,
    ) -> None:
        """Tells the storages what the op was given and made."""
        storages = self._storages
        storages.at(time.perf_counter() - self._start, part, name, module, transient)
        for tensor in tensors:
            if not storages.knows(tensor):  # made before the step, and nobody's parameter
                storages.see(tensor, "caches" if self._attribution.is_in_module() else "inputs")
        for tensor in tensors_in(result):
            storages.see(tensor, is_recomputed=recomputed)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
