"""What ranks send: counted as it happens, and by formula.

Volumes are bytes that one rank sends, by the ring algorithms that NCCL and Gloo use for large tensors (Thakur et al.
2005, "Optimization of collective communication operations in MPICH", sections 4.1 to 4.5): every rank sends as much as
it receives, and nothing that moves as much as the result needs can send less.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode

from verim.errors import InputError

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "scatter", "send"]


def volume(kind: Kind, size: float, ranks: int) -> float:
    """Bytes that a rank sends for a collective over `ranks` ranks of a tensor of `size` bytes.

        all_reduce   2 (n - 1) / n · size
        all_gather, reduce_scatter, all_to_all, broadcast, scatter   (n - 1) / n · size
        send   size

    The size is that of the whole: of `all_gather` its result, of `reduce_scatter` and `all_to_all` one rank's
    argument. A broadcast is a scatter and a ring gather; the mean over the ranks is that of the gather: whoever begins
    sends everything once more. Of a send it is what the sender sends.

    >>> volume("all_reduce", 100, 4)
    150.0
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind: got {kind!r}, expected one of {', '.join(get_args(Kind))}")
    if kind == "send":
        return size
    return (2 if kind == "all_reduce" else 1) * (ranks - 1) / ranks * size


@dataclass(frozen=True)
class Transfer:
    """A collective of `size` bytes, as `volume` has it, over `ranks` ranks."""

    kind: Kind
    size: int
    ranks: int

    @property
    def volume(self) -> float:
        """Bytes that a rank sends."""
        return volume(self.kind, self.size, self.ranks)


# The whole is the first tensor of the call, or the second: results come first.
_OPERATORS: dict[str, tuple[Kind, int]] = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "alltoall_base_": ("all_to_all", 1),
    "alltoall_": ("all_to_all", 1),
    "broadcast_": ("broadcast", 0),
    "scatter_": ("scatter", 1),
    "send": ("send", 0),
}
_SILENT = {"recv_", "recv_any_source_", "barrier", "monitored_barrier_"}  # counted where it is sent, or empty
_FUNCTIONAL: dict[str, Kind] = {
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "broadcast": "broadcast",
    "broadcast_": "broadcast",
}


class Traffic(TorchDispatchMode):
    """Counts what this process exchanges inside the block: `transfers`, in their order.

    It sees what goes through torch's dispatcher in this thread and in the backward passes that it begins: the
    collectives of `torch.distributed`, functional ones, and those of DDP, FSDP and DTensor.

    >>> with Traffic() as traffic:
    ...     loss.backward()                                    # doctest: +SKIP
    >>> traffic.volume("all_reduce")                           # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__()
        self.transfers: list[Transfer] = []

    def volume(self, kind: Kind | None = None, least: int = 0) -> float:
        """Bytes that this rank sent, of one kind or of all; of transfers of at least `least` bytes."""
        return sum(t.volume for t in self.transfers if kind in (None, t.kind) and t.size >= least)

    def count(self, least: int = 0) -> Counter[str]:
        """How many transfers of each kind; of at least `least` bytes."""
        return Counter(transfer.kind for transfer in self.transfers if transfer.size >= least)

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        space, _, name = operator.name().partition("::")
        name = name.partition(".")[0]
        if space == "c10d" and name not in _SILENT:
            self._count(name, arguments)
        result = operator(*arguments, **keywords)
        if space.startswith("_c10d_functional") and name in _FUNCTIONAL:
            kind = _FUNCTIONAL[name]
            whole = result if kind == "all_gather" else arguments[0]
            self.transfers.append(Transfer(kind, _bytes(whole), _functional_ranks(arguments)))
        return result

    def _count(self, name: str, arguments: Any) -> None:
        assert name in _OPERATORS, f"the collective c10d::{name} is not known to Traffic"
        kind, position = _OPERATORS[name]
        ranks = next(_group(argument).size() for argument in arguments if _is_group(argument))
        self.transfers.append(Transfer(kind, _bytes(arguments[position]), ranks))


def _is_group(argument: Any) -> bool:
    return isinstance(argument, ProcessGroup) or "ProcessGroup" in str(getattr(argument, "_type", lambda: "")())


def _group(argument: Any) -> ProcessGroup:
    return argument if isinstance(argument, ProcessGroup) else ProcessGroup.unbox(argument)


def _functional_ranks(arguments: Any) -> int:
    resolve = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]  # there is no public one
    return int(resolve(arguments[-1]).size())


def _bytes(tensors: Any) -> int:
    """Of a tensor, or of all in a list."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(_bytes, tensors))
