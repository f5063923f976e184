"""Running sums: along one vector, and along either axis of a matrix; beside them a copy of the same bytes."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from verim.bench.limits import Memory
from verim.bench.subject import Case, Limit, Peer, Subject
from verim.ops import prefix_sum
from verim.ops.prefix_sum.cost import forward_cost

_SHAPES = (
    *(((2**bits,), 0) for bits in (6, 10, 14, 16, 18, 20, 22, 24)),
    *((shape, dim) for shape in ((1024, 1024), (4096, 4096)) for dim in (1, 0)),
)
_QUICK = (((2**14,), 0), ((64, 300), 0))


def _case(shape: tuple[int, ...], dim: int) -> Case:
    def tensors() -> list[Tensor]:
        return [torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()]

    cost = forward_cost(math.prod(shape))
    label = "×".join(map(str, shape)) + (f", dim {dim}" if len(shape) > 1 else "")
    return Case(label, tensors, cost, cost + cost, options=(("dim", dim),))


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    return [Memory(case.forward, 1, 1, case.forward.bytes)], [Memory(case.both, 1, 1, case.forward.bytes)]


class _Clone(torch.autograd.Function):
    """A copy each way: the bytes of a prefix sum, and nothing else."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


def _clone(x: Tensor, dim: int) -> Tensor:
    copied: Tensor = _Clone.apply(x)
    return copied


SUBJECT = Subject(
    name="prefix_sum",
    axes="elements",
    ours=prefix_sum,
    peers=(
        Peer("torch.cumsum", "torch", lambda: torch.cumsum),
        Peer("clone", "torch", lambda: _clone, compared=False),
    ),
    cases=lambda quick: [_case(*shape) for shape in (_QUICK if quick else _SHAPES)],
    limits=_limits,
)
