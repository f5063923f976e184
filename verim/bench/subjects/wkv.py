"""RWKV's weighted key-value."""

import torch
from torch import Tensor

from verim.bench.limits import Memory, Vectors
from verim.bench.subject import Case, Limit, Peer, Run, Subject
from verim.ops import wkv
from verim.ops.wkv.cost import backward_cost, forward_cost
from verim.ops.wkv.reference import wkv_reference

_SHAPES = ((4, 1024, 768), (1, 2048, 2048), (16, 128, 256))
_QUICK = ((2, 48, 40),)
_MOST_QUADRATIC = 4 * 10**7  # bytes of a forward pass: beyond, one call of a quadratic loop takes half a minute
_CELL_FLOPS = 19  # of a position and channel in a forward pass, two of them exponentials


def _case(batch: int, length: int, channels: int) -> Case:
    def tensors() -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        k, v = (torch.randn(batch, length, channels, generator=draw) for _ in range(2))
        w, u = torch.exp(torch.linspace(-5, 3, channels)), torch.randn(channels, generator=draw)
        return [tensor.requires_grad_() for tensor in (k, v, w, u)]

    sizes = batch, length, channels
    forward = forward_cost(*sizes)
    return Case("×".join(map(str, sizes)), tensors, forward, forward + backward_cost(*sizes))


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    """Two exponentials for each position and channel, and again where the forward pass is computed again."""
    at_once, cells = case.forward.bytes, case.forward.flops // _CELL_FLOPS
    forward: list[Limit] = [Memory(case.forward, 2, 1, at_once), Vectors(case.forward, cells, 2)]
    return forward, [Memory(case.both, 3, 2, case.both.bytes - at_once), Vectors(case.both, cells, 4)]


def _loop() -> Run:
    return lambda k, v, w, u: wkv_reference(k, v, w, u, None)[0]


def _transformers() -> Run:
    """Of its RwkvModel on the CPU; it indexes the steps, so its backward pass is quadratic in the length."""
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    def run(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        result: Tensor = rwkv_linear_attention_cpu(w.log(), u, k, v)[0]
        return result

    return run


SUBJECT = Subject(
    name="wkv",
    axes="batch × length × channels",
    ours=wkv,
    peers=(
        Peer("loop", "torch", _loop),
        Peer("transformers", "transformers", _transformers, lambda case: case.forward.bytes < _MOST_QUADRATIC),
    ),
    cases=lambda quick: [_case(*shape) for shape in (_QUICK if quick else _SHAPES)],
    limits=_limits,
)
