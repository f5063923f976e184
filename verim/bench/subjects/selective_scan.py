"""Mamba's selective scan. Its peers hold all states of all positions: 54 to 157 times the memory of the output."""

import torch
from torch import Tensor

from verim.bench.limits import Memory, Vectors
from verim.bench.subject import Case, Limit, Peer, Run, Subject
from verim.bench.subjects.scans import Scan, compiled_scan, mambapy_scan, worth_compiling
from verim.ops import selective_scan
from verim.ops.selective_scan.cost import backward_cost, forward_cost
from verim.ops.selective_scan.reference import selective_scan_reference

_SHAPES = ((1, 2048, 1536, 16), (4, 512, 512, 16), (16, 128, 64, 16))
_QUICK = ((2, 48, 40, 16),)
_CELL_FLOPS = 7  # of an entry of the state in a forward pass, one of them an exponential


def _case(batch: int, length: int, channels: int, state: int) -> Case:
    def tensors() -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw)

        u, delta = normal(batch, length, channels), normal(batch, length, channels)
        A = -torch.rand(channels, state, generator=draw) * 8 - 0.5
        B, C, D = normal(batch, length, state), normal(batch, length, state), normal(channels)
        delta = torch.nn.functional.softplus(delta - 2)
        return [tensor.requires_grad_() for tensor in (u, delta, A, B, C, D)]

    sizes = batch, length, channels, state
    forward = forward_cost(*sizes)
    return Case("×".join(map(str, sizes)), tensors, forward, forward + backward_cost(*sizes))


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    """An exponential for each entry of the state; a second one where the states are computed a second time."""
    at_once, entries = case.forward.bytes, case.forward.flops // _CELL_FLOPS
    forward: list[Limit] = [Memory(case.forward, 2, 1, at_once), Vectors(case.forward, entries, 1)]
    return forward, [Memory(case.both, 3, 2, case.both.bytes - at_once), Vectors(case.both, entries, 2)]


def _loop() -> Run:
    """Steps unbound: those of mamba_ssm and transformers index, and their backward pass is quadratic in the length."""
    return lambda u, delta, A, B, C, D: selective_scan_reference(u, delta, A, B, C, D, None)[0]


def _by(scan: Scan) -> Run:
    """All decays and drives at once, as in mambapy's MambaBlock and in transformers."""

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        states = scan(torch.exp(delta.unsqueeze(-1) * A), (delta * u).unsqueeze(-1) * B.unsqueeze(2))
        return (states @ C.unsqueeze(-1)).squeeze(3) + D * u

    return run


SUBJECT = Subject(
    name="selective_scan",
    axes="batch × length × channels × state",
    ours=selective_scan,
    peers=(
        Peer("loop", "torch", _loop),
        Peer(
            "associative_scan",
            "torch",
            lambda: _by(compiled_scan()),
            lambda case: worth_compiling(case.forward.flops // _CELL_FLOPS // 4),  # one shape of the record
        ),
        Peer("mambapy", "mambapy", lambda: _by(mambapy_scan())),
    ),
    cases=lambda quick: [_case(*shape) for shape in (_QUICK if quick else _SHAPES)],
    limits=_limits,
)
