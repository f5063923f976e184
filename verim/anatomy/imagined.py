"""A step without its numbers: shapes, data types and the few values on which shapes and branches depend.

Torch's fake tensors have shapes and no memory. What they lack are values: of the tokens' routing to experts, of a
loss's gradient that is 1. Integers, truth values and single numbers are therefore computed beside them, from real
tokens; where they depend on numbers that nobody computes, as the choice of experts does, they are spread evenly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from verim.anatomy.library import with_workspace
from verim.errors import InputError

_FEW = 64  # floating-point numbers that are computed
_aten = torch.ops.aten
_CHOICES = frozenset({_aten.topk, _aten.sort, _aten.argmax, _aten.argmin, _aten.multinomial, _aten.max, _aten.min})


class Imagination:
    """Fake tensors, and the values that are known of them. Operators go through `run` while `imagining` lasts."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()
        self._values = WeakIdKeyDictionary()

    @contextmanager
    def imagining(self) -> Iterator[None]:
        """Every tensor that is made is a fake one; the state of the random numbers is as before, afterwards."""
        with torch.random.fork_rng(devices=[]), self.mode:
            yield

    def running(self) -> TorchDispatchMode:
        """A mode whose operators go through `run`."""
        return _Running(self)

    def run(self, operator: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What the operator makes, as fake tensors."""
        given = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        is_known = all(tensor in self._values or not isinstance(tensor, FakeTensor) for tensor in given)
        if operator is _aten._local_scalar_dense.default:
            with _disable_current_modes():
                return self._real(given[0]).item() if is_known else _zero(given[0].dtype)
        try:
            result = operator(*arguments, **keywords)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if not is_known:
                raise InputError(
                    f"prediction: the shape of what {operator} makes depends on numbers that are not computed; "
                    "measure the memory with verim.anatomy.record instead"
                ) from None
            values = self._compute(operator, arguments, keywords)
            result = tree_map(self._faked, values)
            self._remember(result, values)
            return result
        if operator is _aten.mkldnn_rnn_layer.default:
            result = with_workspace(arguments, result)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if is_known and all(_is_kept(tensor) for tensor in made):
            self._remember(result, self._compute(operator, arguments, keywords))
        elif not is_known and getattr(operator, "_overloadpacket", None) in _CHOICES:
            self._spread(operator, arguments, keywords, made)
        return result

    def _compute(self, operator: Any, arguments: Any, keywords: Any) -> Any:
        with _disable_current_modes():
            real = tree_map(self._real, (arguments, keywords))
            return operator(*real[0], **real[1])

    def _real(self, leaf: Any) -> Any:
        if isinstance(leaf, FakeTensor):
            return self._values[leaf]
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    def _faked(self, leaf: Any) -> Any:
        return self.mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

    def _remember(self, result: Any, values: Any) -> None:
        for fake, value in zip(tree_leaves(result), tree_leaves(values), strict=True):
            if isinstance(fake, Tensor):
                self._values[fake] = value

    def _spread(self, operator: Any, arguments: Any, keywords: Any, made: list[Tensor]) -> None:
        """Choices among the entries of a dimension fall on each as often."""
        schema = operator._schema.arguments
        defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        given = defaults | dict(zip((argument.name for argument in schema), arguments, strict=False)) | keywords
        source: Tensor = arguments[0]
        dimension = given.get("dim", -1)  # of `multinomial`, which has no such argument, the last
        entries = source.numel() if dimension is None else source.shape[dimension]
        for tensor in made:
            if tensor.dtype is torch.int64:
                with _disable_current_modes():
                    self._values[tensor] = (torch.arange(tensor.numel()) % max(entries, 1)).view(tensor.shape)


class _Running(TorchDispatchMode):
    def __init__(self, imagination: Imagination) -> None:
        super().__init__()
        self._imagination = imagination

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        return self._imagination.run(operator, arguments, keywords or {})


def _is_kept(tensor: Tensor) -> bool:
    return not tensor.dtype.is_floating_point or tensor.numel() <= _FEW


def _zero(dtype: torch.dtype) -> bool | int | float:
    """What an unknown number is taken for: no error, nothing found."""
    if dtype is torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0
