"""Documents packed behind each other in one row: no position sees another document than its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verim import ops
from verim.errors import InputError
from verim.nn.along import HERE, LooksAlong
from verim.nn.layer import Layer
from verim.nn.recursion import RoutedStack

_POSSIBLE = "attention, minGRU or minLSTM as mixers, or rows without documents"


class WithinDocuments:
    """`Along` of rows in which documents are packed, numbered by `documents` [batch, length] (int32 or int64).

    Attention sees its own document alone; positions stay those of the row, of which rotary attention takes differences.
    A linear recurrence forgets where a document begins: h_t = b_t there. What has no such rule refuses.
    """

    def __init__(self, documents: Int[Tensor, "batch length"]) -> None:
        self.documents = documents

    def positions(self, length: int) -> Sequence[range]:
        return (range(length),)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return ops.attention(q, k, v, window=window, documents=self.documents)

    def rotary_attention(self, qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        return ops.rotary_attention(qkv, cosines, sines, documents=self.documents)

    def linear_recurrence(self, a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Any]:
        begins = self._begins()[(..., *(None,) * (a.dim() - 2))]
        return ops.linear_recurrence(a.masked_fill(begins, 0), b, initial, return_state=True)

    def row_before(self, x: Float[Tensor, "batch length width"]) -> NoReturn:
        self._refuse("a token shift")

    def causal_conv1d(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("a convolution (kernel 0 is without one, where a mixer has the field)")

    def selective_scan(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("a selective scan")

    def state_space_dual(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("a state-space dual")

    def time_invariant_scan(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("a time-invariant scan")

    def wkv(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("wkv")

    def wkv7(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("wkv7")

    def _begins(self) -> Bool[Tensor, "batch length"]:
        """Where a document begins that is not the row's first."""
        changes = torch.zeros_like(self.documents, dtype=torch.bool)
        changes[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        return changes

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"documents: {what} goes over their boundaries and has no rule to stop there; expected {_POSSIBLE}"
        )


@contextmanager
def within_documents(model: nn.Module, documents: Int[Tensor, "batch length"]) -> Iterator[None]:
    """Inside, `model` takes rows of several documents, numbered by `documents`, each as if it stood alone.

    A new number begins a document (see `verim.data.document_numbers`). Rows begin without a state.

    Raises `InputError` for a layer that cannot be kept inside a document: here where its kind tells, else when it runs.
    """
    for name, module in model.named_modules():
        if isinstance(module, RoutedStack):
            raise InputError(f"documents: {name} routes the tokens of a whole row: leave documents or routing out")
        if isinstance(module, Layer) and module.state_bytes(1, 1) and not _looking(module):
            raise InputError(
                f"documents: {name}, {type(module).__name__}, has no rule to stop at their boundaries; expected "
                f"{_POSSIBLE}"
            )
    looking = _looking(model)
    if any(module.along is not HERE for module in looking):
        raise InputError("documents: the sequences of this model lie on several ranks already: leave either out")
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    hooks = [layer.register_forward_pre_hook(_refuse_state, with_kwargs=True) for layer in layers]
    along = WithinDocuments(documents)
    for module in looking:
        module.along = along
    try:
        yield
    finally:
        for module in looking:
            module.along = HERE
        for hook in hooks:
            hook.remove()


def _looking(model: nn.Module) -> list[LooksAlong]:
    return [module for module in model.modules() if isinstance(module, LooksAlong)]


def _refuse_state(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    if any(state is not None for state in (*arguments[1:], *options.values())):
        raise InputError("documents: rows of several documents begin without a state, got one: leave either out")
