"""Correctness first, then the clock: the sides of a case and the loops that set its ceiling take turns."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verim.anatomy.machine import version_of
from verim.bench.limits import Turn
from verim.bench.subject import Case, Limit, Run, Subject
from verim.errors import VerimError
from verim.ops import force_backend

OURS = "verim"
_SIDE_SECONDS = 4.0  # of a side's turns at a case; once they are spent it takes no further turn
_SHORTEST_CEILING = 2e-5  # seconds; a loop that is shorter measures how its threads start
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 3e-2, torch.float16: 5e-3}


class DisagreementError(VerimError):
    """Two sides compute different things: nothing is timed."""


@dataclass(frozen=True)
class Side:
    """A side's medians in seconds, of so many `rounds`; `package` and `version` say whose it is."""

    name: str
    package: str
    version: str
    forward_seconds: float
    both_seconds: float
    rounds: int


@dataclass(frozen=True)
class Ceiling:
    """The least time, in seconds, and the part of the machine that sets it.

    `holds`: False where the loop says nothing: it is too short to be timed, or some side is faster than it by a tenth.
    """

    name: str
    seconds: float
    holds: bool = True


@dataclass(frozen=True)
class Measured:
    """One case. The first of `sides` is ours. `forward` and `both`: ceilings of the forward pass, and of both.

    `failed`: peers that raised an error here.
    """

    label: str
    dtype: str
    sides: tuple[Side, ...]
    forward: Ceiling
    both: Ceiling
    failed: tuple[str, ...] = ()


def load_peers(subject: Subject, cases: Sequence[Case]) -> tuple[dict[str, Run], list[str]]:
    """Those of the peers for any of `cases` that are installed, by name, and the names of those that are not."""
    found, missing = {}, []
    for peer in subject.peers:
        if not any(peer.scope(case) for case in cases):
            continue
        try:
            found[peer.name] = peer.load()
        except (ImportError, AttributeError):
            missing.append(peer.name)
    return found, missing


def check_ours(subject: Subject) -> None:
    """Ours against its definition in float64, at the small shapes. Raises `DisagreementError`."""
    for case in subject.cases(True):
        tensors = list(case.tensors())
        exact = [t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in tensors]
        with force_backend("reference"):
            expected = _results(subject.ours, case, exact)
        _compare(f"{OURS} and the definition of {subject.name}", case, _results(subject.ours, case, tensors), expected)


def measure(subject: Subject, case: Case, peers: dict[str, Run], rounds: int) -> Measured:
    """Medians of `rounds` turns; of fewer, but one at least, for a side that takes seconds each time.

    Raises `DisagreementError` where a peer's results or gradients are not ours.
    """
    tensors = case.tensors()
    here = {peer.name: peer for peer in subject.peers if peer.scope(case)}
    runs = {OURS: subject.ours} | {name: run for name, run in peers.items() if name in here}
    expected, failed = _results(subject.ours, case, tensors), []
    for name in list(runs)[1:]:
        try:
            got = _results(runs[name], case, tensors)
        except Exception:  # whatever other software raises: it does not run here
            failed.append(name)
            del runs[name]
            continue
        if here[name].compared and not case.random:
            _compare(f"{name} and {OURS}", case, got, expected)
    turns = {name: (Turn(_forward(run, case, tensors)), Turn(_both(run, case, tensors))) for name, run in runs.items()}
    limits = subject.limits(case)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    least: tuple[list[list[float]], ...] = tuple([[] for _ in group] for group in limits)
    for _ in range(rounds):
        for name, passes in turns.items():
            if sum(map(sum, times[name])) < _SIDE_SECONDS:
                for kept, turn in zip(times[name], passes, strict=True):
                    kept.append(turn.seconds())
        for kept_of, group in zip(least, limits, strict=True):
            for kept, limit in zip(kept_of, group, strict=True):
                kept.append(limit.seconds())
    sides = tuple(_side(name, here[name].package if name in here else OURS, *kept) for name, kept in times.items())
    fastest = min(side.forward_seconds for side in sides), min(side.both_seconds for side in sides)
    forward, both = (_ceiling(*three) for three in zip(limits, least, fastest, strict=True))
    return Measured(case.label, str(case.dtype).removeprefix("torch."), sides, forward, both, tuple(failed))


def _side(name: str, package: str, forward: Sequence[float], both: Sequence[float]) -> Side:
    version = str(version_of(package))
    return Side(name, package, version, statistics.median(forward), statistics.median(both), len(forward))


def _ceiling(limits: Sequence[Limit], times: Sequence[Sequence[float]], fastest: float) -> Ceiling:
    """The part of the machine that takes longest, at its best turn: no implementation can be faster."""
    name, seconds = max(
        ((limit.name, min(kept)) for limit, kept in zip(limits, times, strict=True)), key=lambda x: x[1]
    )
    return Ceiling(name, seconds, holds=_SHORTEST_CEILING <= seconds <= 1.1 * fastest)


def _forward(run: Run, case: Case, tensors: Sequence[Tensor]) -> Callable[[], object]:
    options = dict(case.options)

    def work() -> None:
        with torch.no_grad():
            run(*tensors, **options)

    return work


def _both(run: Run, case: Case, tensors: Sequence[Tensor]) -> Callable[[], object]:
    options, leaves = dict(case.options), [tensor for tensor in tensors if tensor.requires_grad]
    gradient = _gradient(run(*tensors, **options))
    return lambda: torch.autograd.grad(run(*tensors, **options), leaves, gradient)


def _results(run: Run, case: Case, tensors: Sequence[Tensor]) -> list[Tensor]:
    y = run(*tensors, **dict(case.options))
    return [y.detach(), *torch.autograd.grad(y, [tensor for tensor in tensors if tensor.requires_grad], _gradient(y))]


def _gradient(y: Tensor) -> Tensor:
    """The same for every side: 1 for a loss, else random."""
    if y.dim() == 0:
        return torch.ones_like(y)
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)


def _compare(who: str, case: Case, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        what = "the result" if index == 0 else f"the gradient of argument {index}"
        error = float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30))
        if one.shape != other.shape or not error <= _TOLERANCES[case.dtype]:
            raise DisagreementError(
                f"{who} disagree at {case.label} about {what}: relative error {error:.1e}, allowed "
                f"{_TOLERANCES[case.dtype]:.0e}; nothing was timed"
            )
