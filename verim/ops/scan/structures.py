"""Elements of a scan: a tensor, or tuples of tensors nested as the caller likes."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from verim.errors import InputError

Leaves = list[Tensor]
Apply = Callable[[Leaves, Leaves], Leaves]  # `combine` on the flat lists of tensors


def leaves_of(structure: Any) -> Leaves:
    """The tensors (or whatever stands in their place) of nested tuples, from left to right."""
    if isinstance(structure, tuple):
        return [leaf for part in structure for leaf in leaves_of(part)]
    return [structure]


def rebuilt(template: Any, leaves: Iterator[Any]) -> Any:
    """The nesting of `template` around other leaves; named tuples stay what they are."""
    if isinstance(template, tuple):
        make = getattr(type(template), "_make", tuple)
        return make([rebuilt(part, leaves) for part in template])
    return next(leaves)


def described(structure: Any) -> str:
    """The nesting in words, for messages: (tensor, (tensor, tensor))."""
    if isinstance(structure, tuple):
        return f"({', '.join(described(part) for part in structure)})"
    return "tensor" if isinstance(structure, Tensor) else type(structure).__name__


def on_leaves(op: str, combine: Callable[[Any, Any], Any], template: Any) -> Apply:
    """`combine` as a function of flat lists, whose every result is checked against what it was given."""
    expected = described(template)

    def apply(left: Leaves, right: Leaves) -> Leaves:
        result = combine(rebuilt(template, iter(left)), rebuilt(template, iter(right)))
        if described(result) != expected:
            raise InputError(
                f"{op}: combine returned {described(result)}, expected {expected} like the elements: "
                "return the combined element in the structure it came in"
            )
        leaves = leaves_of(result)
        for index, (got, like) in enumerate(zip(leaves, right, strict=True)):
            _check_leaf(op, index, got, like)
        return leaves

    return apply


def _check_leaf(op: str, index: int, got: Tensor, like: Tensor) -> None:
    if got.shape != like.shape:
        raise InputError(
            f"{op}: combine returned shape {tuple(got.shape)} for tensor {index} of the elements, expected "
            f"{tuple(like.shape)}: it is called on slices of any length along the scanned axis and has to keep it"
        )
    if got.dtype is not like.dtype:
        raise InputError(
            f"{op}: combine returned {got.dtype} for tensor {index} of the elements, expected {like.dtype}: "
            "convert its result or the elements"
        )
    if got.device != like.device:
        raise InputError(
            f"{op}: combine returned a tensor on {got.device} for tensor {index} of the elements, "
            f"expected {like.device}"
        )
