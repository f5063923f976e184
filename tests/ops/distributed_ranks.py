"""One rank of the checks of `verim.ops.distributed`, a process of its own: see test_distributed.py.

    python distributed_ranks.py RANK WORLD FOLDER

The processes meet over a file in FOLDER. Each runs all `CHECKS` in order and writes to FOLDER/RANK.json what came out:
null, or a traceback, after which it leaves (the others then fail too, at once, instead of waiting).
"""

import json
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import distributed_neighbours as neighbours
import pytest
import torch
from torch import Tensor, distributed

from verim.errors import InputError
from verim.ops.backend import force_backend
from verim.ops.distributed import (
    distributed_linear_recurrence,
    distributed_selective_scan,
    distributed_state_space_dual,
    distributed_wkv,
    distributed_wkv7,
)
from verim.ops.linear_recurrence import linear_recurrence
from verim.ops.selective_scan import selective_scan
from verim.ops.state_space_dual import state_space_dual
from verim.ops.wkv import wkv
from verim.ops.wkv7 import wkv7

CHECKS: dict[str, Callable[[], None]] = {}
LENGTHS = {2: [(5, 3), (0, 6), (4, 0), (1, 1)], 4: [(5, 0, 7, 3), (0, 4, 1, 0), (0, 0, 0, 0), (16, 33, 17, 31)]}
PAIRS = ((0, 2), (1, 3))


@dataclass(frozen=True)
class Subject:
    """An op here and over ranks: how to make its tensors, and which of them are sequences. The last is the state."""

    local: Callable[..., tuple[Tensor, Tensor]]
    over_ranks: Callable[..., tuple[Tensor, Tensor]]
    make: Callable[[int, int, int, torch.Generator], list[Tensor]]
    sequences: tuple[int, ...]
    reverse: bool = False


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def recurrence_tensors(batch: int, length: int, channels: int, g: torch.Generator) -> list[Tensor]:
    a, b, initial = normal(g, batch, length, channels), normal(g, batch, length, channels), normal(g, batch, channels)
    a[:, ::5] = 0  # a reset forgets: no gradient may be lost or made up there
    return [a.clamp(-1, 1), b, initial]


def complex_tensors(batch: int, length: int, channels: int, g: torch.Generator) -> list[Tensor]:
    real, imaginary = recurrence_tensors(batch, length, channels, g), recurrence_tensors(batch, length, channels, g)
    return [torch.complex(*parts) * 0.8 for parts in zip(real, imaginary, strict=True)]


def scan_tensors(batch: int, length: int, channels: int, g: torch.Generator) -> list[Tensor]:
    u, delta = normal(g, batch, length, channels), normal(g, batch, length, channels).sigmoid()
    A, D, initial = -normal(g, channels, 3).exp(), normal(g, channels), normal(g, batch, channels, 3)
    B, C = (normal(g, 3, batch, length).permute(1, 2, 0) for _ in range(2))  # not contiguous
    return [u, delta, A, B, C, D, initial]


def wkv_tensors(batch: int, length: int, channels: int, g: torch.Generator) -> list[Tensor]:
    k, v = 5 * normal(g, batch, length, channels), normal(g, batch, length, channels)
    w, u = normal(g, channels).exp(), normal(g, channels)
    state = torch.stack([normal(g, batch, channels), normal(g, batch, channels).exp(), normal(g, batch, channels)], 1)
    return [k, v, w, u, state]


def dual_tensors(batch: int, length: int, channels: int, g: torch.Generator) -> list[Tensor]:
    x, delta = normal(g, batch, length, channels, 4), normal(g, batch, length, channels).sigmoid()
    A, D, initial = -normal(g, channels).exp(), normal(g, channels), normal(g, batch, channels, 3, 4)
    B, C = (normal(g, 3, batch, length, 1).permute(1, 2, 3, 0) for _ in range(2))
    return [x, delta, A, B, C, D, initial]


def wkv7_tensors(batch: int, length: int, channels: int, g: torch.Generator) -> list[Tensor]:
    r, w, k, v, removed = (normal(g, batch, length, channels, 4) for _ in range(5))
    removed = torch.nn.functional.normalize(removed, dim=-1)
    rate, state = normal(g, batch, length, channels, 4).sigmoid(), normal(g, batch, channels, 4, 4)
    return [r, w.sigmoid(), k, v, -removed, removed * rate, state]


SUBJECTS = {
    "linear recurrence": Subject(linear_recurrence, distributed_linear_recurrence, recurrence_tensors, (0, 1)),
    "reversed": Subject(linear_recurrence, distributed_linear_recurrence, recurrence_tensors, (0, 1), reverse=True),
    "complex": Subject(linear_recurrence, distributed_linear_recurrence, complex_tensors, (0, 1)),
    "selective scan": Subject(selective_scan, distributed_selective_scan, scan_tensors, (0, 1, 3, 4)),
    "wkv": Subject(wkv, distributed_wkv, wkv_tensors, (0, 1)),
    "state space dual": Subject(state_space_dual, distributed_state_space_dual, dual_tensors, (0, 1, 3, 4)),
    "wkv7": Subject(wkv7, distributed_wkv7, wkv7_tensors, (0, 1, 2, 3, 4, 5)),
}


def check(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS[name] = function
        return function

    return register


def call(op: Callable[..., tuple[Tensor, Tensor]], subject: Subject, tensors: list[Tensor | None], **more: object):
    if subject.reverse:
        more["reverse"] = True
    return op(*tensors, return_state=True, **more)


def close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    kind = torch.complex128 if expected.is_complex() else torch.float64
    error, size = (got.to(kind) - expected.to(kind)).norm(), expected.to(kind).norm()
    assert error <= tolerance * (size + 1), f"{what}: error {error}, size {size}"


def compare(
    subject: Subject,
    lengths: tuple[int, ...],
    group: distributed.ProcessGroup | None,
    dtype: torch.dtype,
    tolerance: float,
    from_state: bool = True,
    batch: int = 2,
    channels: int = 5,
) -> None:
    """A rank's y, the final state and all gradients, against the whole sequence at once in float64."""
    rank = distributed.get_rank(group)
    generator = torch.Generator().manual_seed(sum(lengths) + 7 * batch + channels)
    whole = subject.make(batch, sum(lengths), channels, generator)
    if not from_state:
        whole[-1] = None
    given = [None if t is None else t.to(torch.complex64 if t.is_complex() else dtype) for t in whole]
    if dtype is torch.float64:
        given = whole
    exact = [None if t is None else t.to(w.dtype).requires_grad_() for t, w in zip(given, whole, strict=True)]
    with force_backend("reference"):
        y, final = call(subject.local, subject, exact)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    final_weights = [torch.randn(final.shape, generator=generator, dtype=torch.float64).to(y.dtype) for _ in lengths]
    wanted = [tensor for tensor in exact if tensor is not None]
    loss = (y * weight).sum() + (final * sum(final_weights)).sum()
    expected = dict(
        zip(
            [i for i, t in enumerate(exact) if t is not None],
            torch.autograd.grad(
                loss.real if loss.is_complex() else loss, wanted, allow_unused=True, materialize_grads=True
            ),
            strict=True,
        )
    )

    begin = sum(lengths[:rank])
    here = slice(begin, begin + lengths[rank])
    pieces = [
        None if t is None else (t[:, here] if i in subject.sequences else t).detach().clone().requires_grad_()
        for i, t in enumerate(given)
    ]
    got, got_final = call(subject.over_ranks, subject, pieces, group=group)
    close(got, y[:, here], tolerance, "y")
    close(got_final, final, tolerance, "final state")
    loss = (got * weight[:, here].to(got.dtype)).sum() + (got_final * final_weights[rank].to(got_final.dtype)).sum()
    (loss.real if loss.is_complex() else loss).backward()
    first = len(lengths) - 1 if subject.reverse else 0
    for index, gradient in expected.items():
        found = pieces[index].grad
        if index in subject.sequences:
            close(found, gradient[:, here], tolerance, f"gradient {index}")
        elif index == len(given) - 1:
            assert (found is not None) == (rank == first), "the state before gets its gradient where it is read"
            if found is not None:
                close(found, gradient, tolerance, f"gradient {index}")
        else:
            total = found.double()
            distributed.all_reduce(total, group=group)
            close(total, gradient, tolerance, f"gradient {index}")


def world_and_pair() -> list[tuple[distributed.ProcessGroup | None, int]]:
    return [(None, 4), (GROUPS["pair"], 2)]


for _name, _subject in SUBJECTS.items():

    def _in_double(subject: Subject = _subject) -> None:
        for group, ranks in world_and_pair():
            for number, lengths in enumerate(LENGTHS[ranks]):
                with force_backend("reference"):
                    compare(subject, lengths, group, torch.float64, 1e-11, from_state=number % 2 == 0)

    def _in_single(subject: Subject = _subject) -> None:
        for group, ranks in world_and_pair():
            for number, lengths in enumerate(LENGTHS[ranks]):
                compare(subject, lengths, group, torch.float32, 1e-5, from_state=number % 2 == 0, channels=19)

    CHECKS[f"{_name} in float64"] = _in_double
    CHECKS[f"{_name} in float32"] = _in_single


@check("random pieces")
def random_pieces() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        lengths = tuple(torch.randint(0, 40, (4,), generator=generator).tolist())
        batch, channels = torch.randint(0, 4, (2,), generator=generator).tolist()
        for subject in SUBJECTS.values():
            with force_backend("reference"):
                compare(subject, lengths, None, torch.float64, 1e-11, batch=batch, channels=channels + 1)


@check("halves")
def halves() -> None:
    for name in ("linear recurrence", "selective scan", "wkv", "state space dual", "wkv7"):
        compare(SUBJECTS[name], (6, 2, 0, 9), None, torch.bfloat16, 2e-2)


def parts(subject: Subject, length: int = 4, channels: int = 5) -> list[Tensor]:
    """The tensors of one rank, alike on all."""
    return subject.make(2, length, channels, torch.Generator().manual_seed(3))


def refused(subject: Subject, words: str, tensors: list[Tensor | None], **more: object) -> None:
    with force_backend("reference"), pytest.raises(InputError, match=re.escape(words)):
        subject.over_ranks(*tensors, **more)


def rank() -> int:
    return distributed.get_rank()


@check("what differs between ranks is refused on all of them")
def disagreement() -> None:
    for subject in SUBJECTS.values():
        tensors = parts(subject, channels=5 + rank() // 3)
        refused(subject, "disagree about the shape of the state", tensors)
        tensors = [t if rank() else t.to(torch.complex64 if t.is_complex() else torch.float32) for t in parts(subject)]
        refused(subject, "disagree about the data type", tensors)
        refused(subject, "disagree about return_state", parts(subject), return_state=rank() == 1)
        with torch.set_grad_enabled(rank() != 2):
            refused(subject, "disagree about recording gradients", parts(subject))
        refused(subject, "but not on rank 0", [*parts(subject)[:-1], parts(subject)[-1] if rank() == 1 else None])
    refused(SUBJECTS["linear recurrence"], "disagree about reverse", parts(SUBJECTS["reversed"]), reverse=rank() == 1)


@check("wrong arguments on one rank are refused on all of them")
def wrong_arguments() -> None:
    for subject in SUBJECTS.values():
        for wrong in range(4):
            tensors = parts(subject)
            if rank() == wrong:
                tensors[1] = tensors[1][:, 1:]
            refused(subject, "(2, 3, 5", tensors)
            none = [*tensors[:1], None, *tensors[2:]] if rank() == wrong else parts(subject)
            with force_backend("reference"), pytest.raises(InputError, match="NoneType"):
                subject.over_ranks(*none)


@check("a call outside the group is refused")
def outside() -> None:
    group = distributed.new_group([0, 1])
    subject = SUBJECTS["wkv"]
    if rank() > 1:
        refused(subject, "is not a member of the process group", parts(subject), group=group)
    else:
        with force_backend("reference"):
            subject.over_ranks(*parts(subject), group=group)


@check("coefficients that broadcast")
def broadcast() -> None:
    generator = torch.Generator().manual_seed(4)
    b = normal(generator, 2, 12, 5)
    here = slice(3 * rank(), 3 * rank() + 3)
    for shape in ((5,), (1, 1, 5), (2, 1, 1), ()):
        a = normal(generator, *shape).sigmoid().requires_grad_()
        share = a.detach().clone().requires_grad_()
        with force_backend("reference"):
            expected = linear_recurrence(a, b)
            got = distributed_linear_recurrence(share, b[:, here])
        close(got, expected[:, here], 1e-11, "h")
        expected.square().sum().backward()
        got.square().sum().backward()
        distributed.all_reduce(share.grad)
        close(share.grad, a.grad, 1e-11, "gradient of a")


@check("a group of one rank is the local op")
def alone() -> None:
    groups = [distributed.new_group([other]) for other in range(4)]
    for subject in SUBJECTS.values():
        with force_backend("reference"):
            y, final = call(subject.over_ranks, subject, parts(subject), group=groups[rank()])
            local, local_final = call(subject.local, subject, parts(subject))
        assert torch.equal(y, local) and torch.equal(final, local_final)


@check("a rank that needs no gradient, and one whose loss needs no output, help the others")
def frozen() -> None:
    """Two calls in one graph, the second on the first's output."""
    for name in ("linear recurrence", "selective scan", "wkv"):
        subject = SUBJECTS[name]
        whole = subject.make(2, 12, 5, torch.Generator().manual_seed(1))
        here = slice(3 * rank(), 3 * rank() + 3)
        for still in range(4):
            with force_backend("reference"):
                y = subject.local(whole[0].requires_grad_(), *whole[1:])
                y = subject.local(y, *whole[1:])
                (expected,) = torch.autograd.grad(y[:, :9].square().sum(), whole[0])
                cut = [t.detach()[:, here] if i in subject.sequences else t for i, t in enumerate(whole)]
                y = subject.over_ranks(cut[0].requires_grad_(rank() != still), *cut[1:])
                y = subject.over_ranks(y, *cut[1:])
            (0 * y.sum() if rank() == 3 else y.square().sum()).backward()
            if rank() == still:
                assert cut[0].grad is None
            else:
                close(cut[0].grad, expected[:, here], 1e-10, f"gradient in {name}")


@check("the state goes from one sequence to the next")
def handed_on() -> None:
    for subject in SUBJECTS.values():
        if subject.reverse:
            continue
        whole = subject.make(2, 16, 5, torch.Generator().manual_seed(2))
        with force_backend("reference"):
            expected, expected_final = call(subject.local, subject, whole)
            state = whole[-1]
            for begin in (2 * rank(), 8 + 2 * rank()):
                cut = [t[:, begin : begin + 2] if i in subject.sequences else t for i, t in enumerate(whole[:-1])]
                y, state = call(subject.over_ranks, subject, [*cut, state])
                close(y, expected[:, begin : begin + 2], 1e-11, "y")
        close(state, expected_final, 1e-11, "final state")


@check("no second derivative, no second backward pass")
def once() -> None:
    subject = SUBJECTS["linear recurrence"]
    for again in (False, True):
        tensors = [tensor.requires_grad_() for tensor in parts(subject)]
        with force_backend("reference"):
            loss = subject.over_ranks(*tensors).sum()
        if again:
            loss.backward(retain_graph=True)
        with pytest.raises(InputError, match="a second backward pass" if again else "create_graph=True"):
            torch.autograd.grad(loss, tensors, create_graph=not again)


check("the rows before a piece")(neighbours.rows_before_a_piece)
check("a convolution over pieces")(neighbours.convolution)
check("attention by ring")(neighbours.attention_by_ring)
check("attention in halves")(neighbours.attention_in_halves)
check("what attention sends")(neighbours.what_attention_sends)
check("attention refuses on all ranks")(neighbours.attention_refuses)

GROUPS: dict[str, distributed.ProcessGroup] = {}


def compile_kernels() -> None:
    """Once, on one rank, instead of on all at the same time: the others find them in the cache."""
    for name, subject in SUBJECTS.items():
        kind = torch.complex64 if name == "complex" else torch.float32
        leaves = [tensor.to(kind).requires_grad_() for tensor in parts(subject)]
        y, _ = call(subject.local, subject, leaves)
        torch.autograd.grad(y.abs().sum(), leaves)
    neighbours.compile_kernels()


def main() -> None:
    own, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), world)
    if own == 0:
        compile_kernels()
        store.set("compiled", "")
    store.wait(["compiled"], timedelta(seconds=300))
    distributed.init_process_group("gloo", store=store, timeout=timedelta(seconds=60), world_size=world, rank=own)
    for pair in PAIRS:
        group = distributed.new_group(pair)
        if own in pair:
            GROUPS["pair"] = group
    came_out: dict[str, str | None] = {}
    for name, function in CHECKS.items():
        try:
            function()
            came_out[name] = None
        except BaseException:  # pytest's failures too
            came_out[name] = traceback.format_exc()
            break
    (folder / f"{own}.json").write_text(json.dumps(came_out))


if __name__ == "__main__":
    main()
