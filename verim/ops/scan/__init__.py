"""Scans with any associative operation: on whole tensors, as taught, on a model of memory banks, and applied."""

from collections.abc import Callable
from typing import Literal, TypeVar

from torch import Tensor

from verim.errors import InputError
from verim.ops.scan import batched
from verim.ops.scan.structures import Leaves, leaves_of, on_leaves, rebuilt

_NAME = "associative_scan"
_ALGORITHMS: dict[str, batched.Scan] = {
    "sequential": batched.sequential,
    "hillis_steele": batched.hillis_steele,
    "blelloch": batched.blelloch,
    "chunked": batched.chunked,
}
Algorithm = Literal["sequential", "hillis_steele", "blelloch", "chunked"]
Elements = TypeVar("Elements", bound=Tensor | tuple)


def associative_scan(
    combine: Callable[[Elements, Elements], Elements],
    elements: Elements,
    dim: int,
    reverse: bool = False,
    algorithm: Algorithm = "chunked",
) -> Elements:
    """All prefixes of a sequence under any associative operation: y_t = x_1 ∘ x_2 ∘ … ∘ x_t.

    - `combine(left, right)`: the operation ∘. It is called on many places at once, like the function that
      jax.lax.associative_scan takes: `left` and `right` have the structure and the shapes of `elements`, only of
      another length (1 or more) along `dim`, and place i of its result combines place i of `left` with place i of
      `right` and nothing else. It must be associative and need not commute: `left` comes before `right` in the
      scan. It must not change its arguments; the result has their structure, shapes, data types and devices.
    - `elements`: a tensor, or tuples (also named ones) of tensors nested in any way. All have one length along `dim`;
      other sizes, data types and ranks are free. The length may be 0 or 1, then `combine` is not called.
    - `dim`: the axis of the sequence. A negative one counts from the end of the first tensor.
    - `reverse`: scan from the end, y_t = x_n ∘ … ∘ x_{t+1} ∘ x_t: what flipping the elements, scanning them and
      flipping the result gives, as in jax and torch. `left` is again what the scan met first, here the place further
      to the right: one `combine` serves a recurrence and its mirror image. (For x_t ∘ … ∘ x_n swap its arguments.)
    - `algorithm`, for n places; how many combines and calls each takes tells `verim.ops.scan.cost`:
        * "sequential": n - 1 combines in n - 1 calls. The definition.
        * "hillis_steele": about n log2 n combines in log2 n calls. For short sequences of little.
        * "blelloch": under 2 n combines in about 2 log2 n calls: two sweeps over a tree of pairs.
        * "chunked" (the default): under 2 n combines too, by trees whose nodes have as many children as the size of the
          tensors wants: "sequential" where one place fills a call, "hillis_steele" where all places together do not,
          what lies between else. The fastest, or close to it, at all sizes measured.

    The result has the structure of `elements` and shares no memory with it. The algorithms bracket differently, so
    floating-point results differ by rounding. Plain PyTorch on any device: differentiable any number of times wherever
    `combine` is, and traced by torch.compile (which unrolls the calls: not for long "sequential" scans).

    Raises `InputError` (a ValueError) for elements that are no tensors or of different lengths, a `dim` outside, an
    unknown algorithm, and a `combine` that returns another structure, shape, data type or device.

    >>> decay, drive = torch.full((4,), 0.5), torch.ones(4)
    >>> def then(left, right):  # the affine map `right` after the affine map `left`
    ...     return left[0] * right[0], left[1] * right[0] + right[1]
    >>> associative_scan(then, (decay, drive), dim=0)[1]  # h_t = h_{t-1} / 2 + 1
    tensor([1.0000, 1.5000, 1.7500, 1.8750])
    """
    leaves = leaves_of(elements)
    dim = _checked_dim(leaves, dim)
    if algorithm not in _ALGORITHMS:
        raise InputError(f"{_NAME}: argument algorithm is {algorithm!r}, expected one of {', '.join(_ALGORITHMS)}")
    if not callable(combine):
        raise InputError(f"{_NAME}: argument combine is {type(combine).__name__}, expected a function of two elements")
    if leaves[0].shape[dim] < 2:
        scanned = [leaf.clone() for leaf in leaves]
    else:
        apply = on_leaves(_NAME, combine, elements)
        given = [leaf.flip(dim) for leaf in leaves] if reverse else leaves
        scanned = _ALGORITHMS[algorithm](apply, given, dim)
        if reverse:
            scanned = [leaf.flip(dim) for leaf in scanned]
    result: Elements = rebuilt(elements, iter(scanned))
    return result


def _checked_dim(leaves: Leaves, dim: int) -> int:
    """`dim` counted from the front, after all checks of the elements."""
    if not leaves:
        raise InputError(f"{_NAME}: argument elements is an empty tuple, expected at least one tensor")
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"{_NAME}: argument elements has a {type(leaf).__name__} at place {index}, expected a tensor, or "
                "tuples of tensors (turn lists and dictionaries into tuples)"
            )
    if not isinstance(dim, int):
        raise InputError(f"{_NAME}: argument dim is {dim!r}, expected the number of an axis")
    place = dim + leaves[0].dim() if dim < 0 else dim
    for index, leaf in enumerate(leaves):
        if not 0 <= place < leaf.dim():
            raise InputError(
                f"{_NAME}: argument dim is {dim}, but tensor {index} of the elements has shape {tuple(leaf.shape)}: "
                "every tensor needs the scanned axis at this place"
            )
        if leaf.shape[place] != leaves[0].shape[place]:
            raise InputError(
                f"{_NAME}: tensor {index} of the elements has length {leaf.shape[place]} along dim {dim}, expected "
                f"{leaves[0].shape[place]} like the first: all are scanned together"
            )
    return place


__all__ = ["Algorithm", "associative_scan"]
