"""Running sums: along one vector, and along either axis of a matrix."""

import math

import torch
from torch import Tensor

from verim.bench.limits import Memory
from verim.bench.subject import Case, Limit, Peer, Run, Subject
from verim.ops import prefix_sum
from verim.ops.prefix_sum.cost import forward_cost

_SHAPES = (((2**10,), 0), ((2**20,), 0), ((2**24,), 0), ((4096, 4096), 1), ((4096, 4096), 0))
_QUICK = (((2**14,), 0), ((64, 300), 0))


def _case(shape: tuple[int, ...], dim: int) -> Case:
    def tensors() -> list[Tensor]:
        return [torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()]

    cost = forward_cost(math.prod(shape))
    label = "×".join(map(str, shape)) + (f", dim {dim}" if len(shape) > 1 else "")
    return Case(label, tensors, cost, cost + cost, options=(("dim", dim),))


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    return [Memory(case.forward, 1, 1, case.forward.bytes)], [Memory(case.both, 1, 1, case.forward.bytes)]


def _cumsum() -> Run:
    return torch.cumsum


SUBJECT = Subject(
    name="prefix_sum",
    axes="elements",
    ours=prefix_sum,
    peers=(Peer("torch.cumsum", "torch", _cumsum),),
    cases=lambda quick: [_case(*shape) for shape in (_QUICK if quick else _SHAPES)],
    limits=_limits,
)
