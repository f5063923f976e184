"""The state of an optimiser as named tensors, for a checkpoint, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from verim.errors import InputError

_COUNT_ON_CPU = (torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop)  # who read their count of steps


def state_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that `optimiser` keeps of the weights of `model`, as "<what>.<name of the weight>"."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        for what, value in optimiser.state.get(weight, {}).items():
            assert isinstance(value, Tensor), f"{what} of {name} is no tensor"
            tensors[f"{what}.{name}"] = value
    return tensors


def restore_state(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts `state_tensors` back, bit by bit, on the devices of the weights: the optimiser goes on as if never stopped.

    Raises `InputError` for a weight that the model has not, or a tensor that does not fit its weight.
    """
    weights = dict(model.named_parameters())
    optimiser.state.clear()
    for key, value in tensors.items():
        what, _, name = key.partition(".")
        if name not in weights:
            raise InputError(f"the optimiser's state has {key!r}, but the model has no weight {name!r}: another model?")
        weight = weights[name]
        if value.dim() > 1 and value.shape != weight.shape:
            raise InputError(
                f"the optimiser's state {key!r} has shape {tuple(value.shape)}, but its weight has "
                f"{tuple(weight.shape)}: another model?"
            )
        counts_on_cpu = what == "step" and isinstance(optimiser, _COUNT_ON_CPU)
        optimiser.state[weight][what] = value.detach().to("cpu" if counts_on_cpu else weight.device, copy=True)
