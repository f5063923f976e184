"""Named phases of a training step: who runs the step opens them, who measures it listens.

    with phase("forward"):
        logits = model(tokens)

Nobody listening, a phase costs a fraction of a microsecond. Phases nest; the time of an inner one is not the outer's.
"""

from typing import Literal, Protocol, get_args

from verim.errors import InputError

Phase = Literal["data", "copy", "forward", "loss", "backward", "communication", "clip", "optimiser", "rest"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The parts of a step: waiting for data, host-to-device copy, forward pass, loss, backward pass, gradient
communication, clipping, optimiser, and the rest."""


class Listener(Protocol):
    """Who is told of phases, in the order in which they happen."""

    def enter(self, name: Phase) -> None: ...

    def leave(self, name: Phase) -> None: ...


class _Ear:
    """The one place for a listener: a step is measured by one at a time."""

    listener: Listener | None = None


class phase:  # noqa: N801 (used as a function is, in `with phase("loss")`; a class is the cheapest context manager)
    """A named part of a training step, see `PHASES`. Raises `InputError` for another name, when somebody listens."""

    __slots__ = ("_listener", "_name")

    def __init__(self, name: Phase) -> None:
        self._name = name
        self._listener = _Ear.listener

    def __enter__(self) -> None:
        if self._listener is not None:
            if self._name not in PHASES:
                raise InputError(f"phase: got {self._name!r}, expected one of {', '.join(PHASES)}")
            self._listener.enter(self._name)

    def __exit__(self, *exception: object) -> None:
        if self._listener is not None:
            self._listener.leave(self._name)


def listen(listener: Listener) -> None:
    """From now on `listener` is told. Raises `InputError` where another one listens already."""
    if _Ear.listener is not None:
        raise InputError("record: a recording is running already; leave its context before another begins")
    _Ear.listener = listener


def stop_listening() -> None:
    """Nobody is told any more."""
    _Ear.listener = None
