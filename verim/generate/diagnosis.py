"""Numbers that are not finite: found in the logits, and traced to the layer that they come from."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.errors import InputError
from verim.models import LanguageModel
from verim.nn import StackState


def require_finite(
    logits: Float[Tensor, "batch length vocab"],
    model: LanguageModel,
    tokens: Int[Tensor, "batch read"],
    state: StackState | None,
    describe: Callable[[int], str],
) -> None:
    """Raises `InputError` where the logits that `model` gave for `tokens` after `state` are not all finite.

    `describe` says what row of the batch it is, for the message; the step is run again to name the layer.
    """
    if math.isfinite(float(logits.sum(dtype=torch.float32))) or bool(logits.isfinite().all()):
        return
    row = int((~logits.isfinite()).flatten(1).any(-1).nonzero()[0])
    raise InputError(f"{describe(row)}: the logits are not finite; {origin(model, tokens, state)}")


def origin(model: LanguageModel, tokens: Int[Tensor, "batch length"], state: StackState | None) -> str:
    """The first layer whose output is not finite when the model reads `tokens` after `state`, and a likely cause."""
    found: list[str] = []
    with _watched(model, found), torch.no_grad():
        model(tokens, state, last=1)
    where = f"first in {found[0]}" if found else "between the layers"
    broken = next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None)
    if broken is not None:
        return f"{where}; the weights {broken} are not finite themselves: restore the checkpoint"
    return f"{where}; all weights are finite: try float32, or a checkpoint from before the training diverged"


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Notes the layers whose output is not finite, in the order in which they end."""

    def watch(name: str, layer: nn.Module) -> Any:
        def look(layer: nn.Module, inputs: Any, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            bad = int((~y.isfinite()).sum())
            if bad:
                found.append(f"{name} ({type(layer).__name__}), {bad} of {y.numel()} numbers")

        return layer.register_forward_hook(look)

    handles = [watch(name, layer) for name, layer in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
