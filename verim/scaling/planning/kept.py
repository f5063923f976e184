"""What a block keeps of its forward pass for the backward pass: counted on tensors that have shapes and no memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verim.models import Block
from verim.scaling.planning.sizes import Size, size_of
from verim.train.parallel.checkpointing import is_kept
from verim.train.precision import Kind

STREAM_BYTES = 4
"""Of a number between the blocks: sums of residuals are float32, under autocast too."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a block keeps: `per_token`, and `fixed`, whatever the batch (autocast's halves of its weights).

    `stream`: of those a token, what every tensor rank keeps in full, being as wide as what passes between the layers.
    """

    per_token: float
    fixed: float
    stream: float


_COUNTED_WIDTH = 1024


@lru_cache(maxsize=256)
def kept_by_block(size: Size, precision: Kind, recompute: str) -> Kept:
    """The most that a block of the pattern keeps with `activation_checkpointing` set to `recompute`.

    Counted up to a width of 1024; of wider blocks of the dial scaled from there, with the width what is kept of tokens,
    and with its square what is kept of weights (within 1 and 3 %: what does not grow so is small).
    """
    if size.width > _COUNTED_WIDTH:
        narrow = size_of(size.architecture, _COUNTED_WIDTH, size.config.vocab, size.length)
        kept, wider = kept_by_block(narrow, precision, recompute), size.width / _COUNTED_WIDTH
        return Kept(kept.per_token * wider, kept.fixed * wider**2, kept.stream * wider)
    inputs = STREAM_BYTES * size.width
    if recompute == "full":
        return Kept(inputs, 0.0, inputs)
    found = []
    for index, kinds in enumerate(size.config.pattern):
        one = _bytes(size, index, precision, recompute, 1) / size.length
        # what products and kernels make is all of the tokens: nothing is fixed
        two = 2 * one if recompute == "selective" else _bytes(size, index, precision, recompute, 2) / size.length
        layers = 1 if kinds.feed_forward is None else 2
        stream = layers * size.width * (STREAM_BYTES + element_bytes(precision))  # a norm's input and its result
        found.append(Kept(two - one, (2 * one - two) * size.length, min(stream, two - one)))
    return max(found, key=lambda kept: kept.per_token)


def element_bytes(precision: Kind) -> int:
    """Of a number inside a layer."""
    return 4 if precision == "float32" else 2


def _bytes(size: Size, index: int, precision: Kind, recompute: str, rows: int) -> int:
    """Bytes kept by block `index` of the pattern for `rows` sequences, its weights left out."""
    held: dict[int, int] = {}
    with torch.random.fork_rng(devices=[]), FakeTensorMode():
        block = Block(size.config, index)
        own = {weight.untyped_storage()._cdata for weight in block.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                held[storage._cdata] = storage.nbytes()
            return tensor

        x = torch.empty(rows, size.length, size.width, requires_grad=True)
        halves = torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32")
        watched = _selected(keep) if recompute == "selective" else _saved(keep)
        with halves, watched:
            results = block(x)  # alive until all is counted, so that no storage takes the place of another
        if recompute == "selective":
            keep(x)
        del results
    return sum(held.values())


@contextmanager
def _saved(keep: Any) -> Iterator[None]:
    """`keep` is told of every tensor that autograd saves."""
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


@contextmanager
def _selected(keep: Any) -> Iterator[None]:
    """`keep` is told of what operators make whose results selective checkpointing keeps."""
    alive: list[Any] = []
    with _Results(keep, alive):
        yield
    alive.clear()


class _Results(TorchDispatchMode):
    def __init__(self, keep: Any, alive: list[Any]) -> None:
        super().__init__()
        self._keep, self._alive = keep, alive

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*arguments, **(keywords or {}))
        if is_kept(operator):
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self._alive += made
            for tensor in made:
                self._keep(tensor)
        return result
