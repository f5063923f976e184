"""The processes that train one run together, and the few words they exchange, as JSON."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from verim import errors
from verim.errors import RankError

T = TypeVar("T")


class Ranks:
    """`count` processes of which this is number `rank`; without a group, this one alone.

    Every method is collective: all ranks call it, in the same order. The group must be used by nobody else, since
    a checkpoint's writer speaks on it from a thread of its own.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = dist.get_rank(group) if group is not None else 0
        self.count = dist.get_world_size(group) if group is not None else 1

    @classmethod
    def of_world(cls, timeout_seconds: float = 600.0) -> "Ranks":
        """All ranks of `torch.distributed` on a Gloo group of their own; this process alone where there are none.

        A rank that says nothing for `timeout_seconds` counts as lost."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        return cls(dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)))

    def gather(self, text: str) -> list[str]:
        """What every rank says, in their order. Raises `RankError` where one is lost."""
        if self._group is None:
            return [text]
        said = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        try:
            sizes = [torch.empty(1, dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(sizes, torch.tensor([said.numel()]), group=self._group)
            longest = max(int(size) for size in sizes)
            heard = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.count)]
            dist.all_gather(heard, torch.nn.functional.pad(said, (0, longest - said.numel())), group=self._group)
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.count} lost another rank ({str(error).splitlines()[0]}): "
                "look at what that rank printed, then resume the run"
            ) from error
        return [part[: int(size)].numpy().tobytes().decode() for part, size in zip(heard, sizes, strict=True)]

    def on_each(self, act: Callable[[], Any]) -> list[Any]:
        """What `act` returns on every rank (JSON values), in their order.

        Where it raises on some ranks, all raise: each its own error, the others what the first of these says."""
        if self._group is None:
            return [act()]
        own: Exception | None = None
        try:
            outcome = {"value": act()}
        except Exception as error:
            said = getattr(error, "strerror", None) or str(error)  # without the number of the system's error
            own, outcome = error, {"error": type(error).__name__, "message": f"rank {self.rank}: {said}"}
        outcomes = [json.loads(text) for text in self.gather(json.dumps(outcome))]
        if own is not None:
            raise own
        for told in outcomes:
            if "error" in told:
                raise getattr(errors, told["error"], RankError)(told["message"])
        return [told["value"] for told in outcomes]

    def together(self, act: Callable[[], T]) -> T:
        """What `act` returns here; where it raises on some rank, all raise, as in `on_each`."""
        own: list[T] = []
        self.on_each(lambda: own.append(act()))
        return own[0]

    def on_first(self, act: Callable[[], Any]) -> Any:
        """What `act` returns on rank 0 (a JSON value), the same on every rank; so are its errors."""
        return self.on_each(lambda: act() if self.rank == 0 else None)[0]
