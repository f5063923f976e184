"""Where numbers that are not finite come from: the step again, with every layer watched."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from verim.models import LanguageModel
from verim.nn import StackState


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
