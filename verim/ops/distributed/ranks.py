"""The ranks of a process group along a sequence: that their calls fit together, and what they tell each other."""

import json
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed
from torch.distributed import P2POp, ProcessGroup

from verim.errors import InputError

_CALL_BYTES = 512
_ERROR_BYTES = 240  # JSON may need two for each


class Ranks:
    """The ranks of `group`, numbered by `position`: 0 holds the beginning of the sequence, `last` its end.

    The recurrence runs from low ranks to high ones, with `reverse` from high ones to low ones. Every method is a
    collective operation: all ranks call the same ones in the same order.
    """

    def __init__(self, op: str, group: ProcessGroup | None, reverse: bool) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise InputError(
                f"{op}: there is no process group: start the processes with torchrun and call "
                "torch.distributed.init_process_group first, or use the op of the same name without distributed_"
            )
        rank = distributed.get_rank(group)
        if rank < 0:
            raise InputError(
                f"{op}: rank {distributed.get_rank()} is not a member of the process group given as argument group: "
                "call it on the members only"
            )
        self.op = op
        self.group = group
        self.reverse = reverse
        self.last = distributed.get_world_size(group) - 1
        self.position = self._place(rank)

    @property
    def is_first(self) -> bool:
        """Whether this rank holds the beginning."""
        return self.position == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank holds the end."""
        return self.position == self.last

    def rank(self, position: int) -> int:
        """The rank in the group at `position`."""
        return self._place(position)

    def describe(self, call: dict[str, Any]) -> "Agreement":
        """Begins to tell the others what this rank was called with; `Agreement.calls` waits for them."""
        text = json.dumps(call).encode()
        assert len(text) <= _CALL_BYTES, f"the description of a call has {len(text)} bytes, room is {_CALL_BYTES}"
        sent = torch.frombuffer(bytearray(text.ljust(_CALL_BYTES)), dtype=torch.uint8).to(
            self._carrier(torch.device("cpu"))
        )
        received = [torch.empty_like(sent) for _ in range(self.last + 1)]
        work = distributed.all_gather(received, sent, self.group, async_op=True)
        return Agreement(self, work, received)

    def refuse(self, error: Exception) -> NoReturn:
        """Raises `error` here, and in all the others an error that tells of it, so that nobody waits."""
        self.describe({"error": str(error).encode("ascii", "replace")[:_ERROR_BYTES].decode()}).received()
        raise error

    def gather(self, *tensors: Tensor) -> list[list[Tensor]]:
        """The `tensors` of every position. All ranks give the same shapes, and one data type."""
        packed = torch.cat([_as_real(tensor).flatten() for tensor in tensors])
        if not packed.numel():
            return [list(tensors) for _ in range(self.last + 1)]
        sent = packed.to(self._carrier(packed.device))
        received = [torch.empty_like(sent) for _ in range(self.last + 1)]
        distributed.all_gather(received, sent, self.group)
        sizes = [_as_real(tensor).numel() for tensor in tensors]
        rows = [received[self.rank(position)].to(packed.device).split(sizes) for position in range(self.last + 1)]
        return [[_like(part, tensor) for part, tensor in zip(row, tensors, strict=True)] for row in rows]

    def from_last(self, tensor: Tensor) -> Tensor:
        """The `tensor` of the last position; the others give one of the same shape and type."""
        if not tensor.numel():
            return tensor
        sent = _as_real(tensor).to(self._carrier(tensor.device), copy=True).contiguous()
        distributed.broadcast(sent, group=self.group, group_src=self.rank(self.last))
        return _like(sent.to(tensor.device), tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' `tensor`."""
        if not tensor.numel():
            return tensor
        total = _as_real(tensor).to(self._carrier(tensor.device), copy=True).contiguous()
        distributed.all_reduce(total, group=self.group)
        return _like(total.to(tensor.device), tensor)

    def all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """`sent[i]` of the `rows`, in the order of the ranks i, to each of them; `received[i]` from each."""
        carried = rows.contiguous().to(self._carrier(rows.device))
        arrived = carried.new_empty(sum(received), *carried.shape[1:])
        distributed.all_to_all_single(arrived, carried, received, sent, group=self.group)
        return arrived.to(rows.device)

    def exchange(self, sends: list[tuple[Tensor, int]], receives: dict[str, tuple[Tensor, int]]) -> "Exchange":
        """Begins to send tensors to ranks, and to receive some like those given; `Exchange.received` waits for all.

        Between two ranks, tensors arrive in the order in which they were sent: both sides list them so. What a rank
        sends in its n-th exchange, the receiver takes in its n-th: otherwise they may wait for each other for ever.
        """
        operations, arrived = [], {}
        for tensor, rank in sends:
            carried = tensor.contiguous().to(self._carrier(tensor.device))
            operations.append(P2POp(distributed.isend, carried, group=self.group, group_peer=rank))
        for name, (like, rank) in receives.items():
            empty = torch.empty(like.shape, dtype=like.dtype, device=self._carrier(like.device))
            operations.append(P2POp(distributed.irecv, empty, group=self.group, group_peer=rank))
            arrived[name] = empty, like.device
        works = distributed.batch_isend_irecv(operations) if operations else []
        return Exchange(works, operations, arrived)

    def _place(self, number: int) -> int:
        """Rank to position, and position to rank."""
        return self.last - number if self.reverse else number

    def _carrier(self, device: torch.device) -> torch.device:
        """Where a tensor must lie to be sent: where it is, unless the backend there is Gloo, or there is none."""
        pairs = distributed.get_backend_config(self.group).split(",")  # "cpu:gloo,cuda:nccl"
        backends = dict(pair.split(":") for pair in pairs)
        if backends.get(device.type, "gloo") != "gloo":
            return device
        return torch.device("cpu" if "cpu" in backends else next(iter(backends)))


class Exchange:
    """Tensors on their way between pairs of ranks. It holds what is sent until that is gone."""

    def __init__(
        self, works: list[Any], operations: list[P2POp], arrived: dict[str, tuple[Tensor, torch.device]]
    ) -> None:
        self._works, self._operations, self._arrived = works, operations, arrived

    def received(self) -> dict[str, Tensor]:
        """Waits; what was received, by its name."""
        for work in self._works:
            work.wait()
        return {name: tensor.to(device) for name, (tensor, device) in self._arrived.items()}


class Agreement:
    """The descriptions of all ranks' calls, on their way."""

    def __init__(self, ranks: Ranks, work: Any, buffers: list[Tensor]) -> None:
        self._ranks, self._work, self._buffers = ranks, work, buffers

    def received(self) -> list[dict[str, Any]]:
        """What each rank of the group sent, by rank."""
        self._work.wait()
        return [json.loads(bytes(buffer.tolist())) for buffer in self._buffers]

    def calls(
        self, alike: tuple[str, ...], hint: str = "; only the length of the pieces may differ"
    ) -> list[dict[str, Any]]:
        """What each rank sent. Raises `InputError`, on every rank, where the fields `alike` are not."""
        calls = self.received()
        for rank, call in enumerate(calls):
            if "error" in call:
                raise InputError(f"{self._ranks.op}: rank {rank} refused its arguments: {call['error']}")
        for field in alike:
            for rank, call in enumerate(calls):
                if call.get(field) != calls[0].get(field):
                    raise InputError(
                        f"{self._ranks.op}: the ranks disagree about {field}: {call.get(field)} on rank {rank}, "
                        f"{calls[0].get(field)} on rank 0{hint}"
                    )
        return calls


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _like(part: Tensor, tensor: Tensor) -> Tensor:
    """`part`, a copy of `_as_real(tensor)` in any shape, in the shape and type of `tensor`."""
    if tensor.is_complex():
        return torch.view_as_complex(part.reshape(*tensor.shape, 2))
    return part.reshape(tensor.shape)
