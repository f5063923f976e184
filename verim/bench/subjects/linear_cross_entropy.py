"""A language model's loss from its last hidden states."""

import shutil

import torch
from torch import Tensor
from torch.nn import functional

from verim.bench.limits import Products
from verim.bench.subject import Case, Limit, Peer, Run, Subject
from verim.ops import linear_cross_entropy
from verim.ops.linear_cross_entropy.cost import forward_cost, gradients_cost

_SHAPES = ((2048, 512, 50_000), (2048, 512, 8192))
_QUICK = ((64, 32, 500),)


def _case(rows: int, width: int, vocab: int) -> Case:
    def tensors() -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, width, generator=draw)
        weight = torch.randn(vocab, width, generator=draw) / width**0.5
        return [hidden.requires_grad_(), weight.requires_grad_(), torch.randint(vocab, (rows,), generator=draw)]

    sizes = rows, width, vocab
    return Case("×".join(map(str, sizes)), tensors, forward_cost(*sizes), gradients_cost(*sizes))


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    return [Products(case.forward, case.dtype)], [Products(case.both, case.dtype)]


def _logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight), targets)


def _compiled() -> Run:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ImportError("no C++ compiler was found")
    return torch.compile(_logits, dynamic=False)


def _chunked() -> Run:
    """torch's own, from 2.13 on."""
    options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = functional.linear_cross_entropy(hidden, weight, targets, options=options)
        return loss

    return run


SUBJECT = Subject(
    name="linear_cross_entropy",
    axes="rows × width × vocabulary",
    ours=linear_cross_entropy,
    peers=(
        Peer("torch", "torch", lambda: _logits),
        Peer("torch compiled", "torch", _compiled, lambda case: case.forward.flops > 10**9),
        Peer("torch chunked", "torch", _chunked),
    ),
    cases=lambda quick: [_case(*shape) for shape in (_QUICK if quick else _SHAPES)],
    limits=_limits,
)
