"""Auxiliary losses: what layers add to the training loss, handed past the layers between them and the trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from jaxtyping import Float
from torch import Tensor

_collected: ContextVar[list[Tensor] | None] = ContextVar("verim_auxiliary_losses", default=None)


@contextmanager
def auxiliary_losses() -> Iterator[list[Tensor]]:
    """The auxiliary losses of the forward passes inside the block: a scalar for every call of a layer that has one.

    They come already weighted with their coefficients, and in training mode alone; no layer keeps one, so no graph
    outlives its step, and a layer that is called several times (recursion) counts several times.

    >>> with auxiliary_losses() as losses:
    ...     logits, _ = model(tokens)                          # doctest: +SKIP
    >>> loss = sum(losses, cross_entropy(logits, targets))     # doctest: +SKIP
    """
    losses: list[Tensor] = []
    token = _collected.set(losses)
    try:
        yield losses
    finally:
        _collected.reset(token)


def add_auxiliary_loss(loss: Float[Tensor, ""]) -> None:
    """Called by a layer in training. Where nobody collects, the loss is lost."""
    losses = _collected.get()
    if losses is not None:
        losses.append(loss)
