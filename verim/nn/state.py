"""What a layer keeps of the sequences so far: states that can be picked apart and joined, row by row."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor


class State(ABC):
    """The state of a batch of sequences, to go on from. It does not change: a layer returns the next one.

    Rows are independent: continuous batching drops those that ended (`take`) and adds new ones (`join`).
    """

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds, `[batch, ...]` each."""

    @abstractmethod
    def take(self, rows: Int[Tensor, "rows"]) -> Self:
        """The state of the rows of the batch with these numbers, in this order; a row may be taken twice."""

    @classmethod
    @abstractmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """One batch of all the rows of `states`, in their order. Rows may have seen sequences of different length."""

    @abstractmethod
    def earlier(self, positions: int) -> Self | None:
        """The state as it was before the last `positions` positions, or None where it was not kept."""

    def put(self, rows: Int[Tensor, "rows"], part: Self) -> Self:
        """This state with the rows of these numbers, none twice, taken from `part`: they went on without the others."""
        whole = type(self).join([self, part])
        held = len(self.tensors()[0])
        order = torch.arange(held, device=rows.device)
        order[rows] = torch.arange(held, held + len(rows), device=rows.device)
        return whole.take(order)

    def bytes(self) -> int:
        """Bytes of the tensors it holds."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


@dataclass(frozen=True)
class TensorState(State):
    """Of a recurrent layer: a dataclass whose fields are tensors `[batch, ...]`, the same size at any length.

    A sequence that has seen nothing has a state of zeros.
    """

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def take(self, rows: Int[Tensor, "rows"]) -> Self:
        return type(self)(*(tensor.index_select(0, rows) for tensor in self.tensors()))

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        return cls(*map(torch.cat, zip(*(state.tensors() for state in states), strict=True)))

    def put(self, rows: Int[Tensor, "rows"], part: Self) -> Self:
        pairs = zip(self.tensors(), part.tensors(), strict=True)
        return type(self)(*(tensor.index_copy(0, rows, new) for tensor, new in pairs))

    def blank(self, count: int) -> Self:
        """The state of `count` sequences that have seen nothing."""
        return type(self)(*(tensor.new_zeros(count, *tensor.shape[1:]) for tensor in self.tensors()))

    def earlier(self, positions: int) -> Self | None:
        return self if positions == 0 else None


class StackState(State):
    """The states of the layers of a stack, in their order; None for a layer that keeps nothing."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = tuple(layers)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for layer in self.layers if layer is not None for tensor in layer.tensors())

    def take(self, rows: Int[Tensor, "rows"]) -> "StackState":
        return StackState([None if layer is None else layer.take(rows) for layer in self.layers])

    @classmethod
    def join(cls, states: Sequence["StackState"]) -> "StackState":
        columns = zip(*(state.layers for state in states), strict=True)
        return cls([None if column[0] is None else type(column[0]).join(column) for column in columns])

    def put(self, rows: Int[Tensor, "rows"], part: "StackState") -> "StackState":
        pairs = zip(self.layers, part.layers, strict=True)
        return StackState([None if layer is None else layer.put(rows, new) for layer, new in pairs])

    def blank(self, count: int) -> "StackState":
        """The state of `count` sequences that have seen nothing."""
        return StackState([None if layer is None else layer.blank(count) for layer in self.layers])

    def bytes(self) -> int:
        return sum(layer.bytes() for layer in self.layers if layer is not None)

    def earlier(self, positions: int) -> "StackState | None":
        layers = [None if layer is None else layer.earlier(positions) for layer in self.layers]
        lost = any(new is None and old is not None for new, old in zip(layers, self.layers, strict=True))
        return None if lost else StackState(layers)
