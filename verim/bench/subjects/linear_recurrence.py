"""The first-order linear recurrence."""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from verim.bench.limits import Memory
from verim.bench.subject import Case, Limit, Peer, Run, Subject
from verim.bench.subjects.scans import compiled_scan, mambapy_scan, worth_compiling
from verim.ops import linear_recurrence
from verim.ops.linear_recurrence.cost import backward_cost, forward_cost
from verim.ops.linear_recurrence.reference import linear_recurrence_reference

_SHAPES = ((4, 4096, 512), (1, 65536, 16), (16, 128, 256))
_QUICK = ((2, 64, 24),)


def _case(batch: int, length: int, channels: int) -> Case:
    def tensors() -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        a = torch.rand(batch, length, channels, generator=draw)
        return [a.requires_grad_(), torch.randn(batch, length, channels, generator=draw).requires_grad_()]

    forward = forward_cost(batch, length, channels)
    return Case(f"{batch}×{length}×{channels}", tensors, forward, forward + backward_cost(batch, length, channels))


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    at_once = case.forward.bytes
    return [Memory(case.forward, 2, 1, at_once)], [Memory(case.both, 3, 2, case.both.bytes - at_once)]


def _loop() -> Run:
    return lambda a, b: linear_recurrence_reference(a, b, None, False)[0]


def _mambapy() -> Run:
    scan = mambapy_scan()
    return lambda a, b: scan(a.unsqueeze(-1), b.unsqueeze(-1)).squeeze(-1)


def _jax() -> Run:
    """jax's scan over the steps, compiled; its gradient is jax's own. Tensors are handed over without copies."""
    jax: Any = importlib.import_module("jax")

    def step(h: Any, now: Any) -> Any:
        h = now[0] * h + now[1]
        return h, h

    def states(a: Any, b: Any) -> Any:
        steps = jax.numpy.swapaxes(a, 0, 1), jax.numpy.swapaxes(b, 0, 1)
        return jax.numpy.swapaxes(jax.lax.scan(step, jax.numpy.zeros_like(b[:, 0]), steps)[1], 0, 1)

    forward = jax.jit(states)
    forward_for_backward = jax.jit(lambda a, b: jax.vjp(states, a, b))
    backward = jax.jit(lambda pull_back, gradient: pull_back(gradient))

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            given = [jax.dlpack.from_dlpack(tensor.detach()) for tensor in (a, b)]
            if not any(ctx.needs_input_grad):
                return from_dlpack(forward(*given))
            h, ctx.pull_back = forward_for_backward(*given)
            return from_dlpack(h)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
            pulled = backward(ctx.pull_back, jax.dlpack.from_dlpack(gradients[0].contiguous()))
            return tuple(from_dlpack(gradient) for gradient in pulled)

    return Scan.apply


SUBJECT = Subject(
    name="linear_recurrence",
    axes="batch × length × channels",
    ours=linear_recurrence,
    peers=(
        Peer("loop", "torch", _loop, lambda case: case.forward.bytes < 2**28 and not case.label.startswith("1×")),
        Peer("associative_scan", "torch", compiled_scan, lambda case: worth_compiling(case.forward.bytes // 12)),
        Peer("mambapy", "mambapy", _mambapy),
        Peer("jax", "jax", _jax),
    ),
    cases=lambda quick: [_case(*shape) for shape in (_QUICK if quick else _SHAPES)],
    limits=_limits,
)
