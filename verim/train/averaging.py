"""An exponential moving average of the weights, to evaluate and to keep."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verim.errors import InputError


@dataclass(frozen=True)
class AveragingConfig:
    """a ← d a + (1 - d) w after every update (Polyak & Juditsky 1992; Morales-Brogaard et al. 2024, arXiv 2411.18704).

    - `decay`: d at last. The average looks back over about 1 / (1 - d) updates.
    - `warmup`: d is min(decay, (1 + n) / (warmup + n)) after n updates (as TensorFlow's `ExponentialMovingAverage`
      does with 10), so that the weights of the start are soon forgotten; 0: `decay` from the first.
    """

    decay: float = 0.999
    warmup: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InputError(f"decay: got {self.decay}, expected a number in [0, 1)")
        if not (self.warmup == 0 or 1 <= self.warmup < float("inf")):
            raise InputError(f"warmup: got {self.warmup}, expected 0 or a number of at least 1")

    def build(self, model: nn.Module) -> "WeightAverage":
        return WeightAverage(model, self)


class WeightAverage:
    """The average of the weights of `model`, begun at what they are now.

    It is kept in float32 (float64 of such weights) on the weights' device: `bytes()` of memory. Weights that are tied
    are averaged once. Buffers are not averaged: evaluation sees the model's.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig) -> None:
        self.config, self.updates = config, 0
        self._weights = dict(model.named_parameters())
        self._averages = {name: _widened(weight.detach()).clone() for name, weight in self._weights.items()}
        self._is_applied = False

    @torch.no_grad()
    def update(self) -> None:
        """To be called after every update of the weights."""
        assert not self._is_applied, "the weights are the averages themselves at the moment"
        decay = self.decay()
        weights = [_widened(weight.detach()) for weight in self._weights.values()]
        if weights:
            torch._foreach_lerp_(list(self._averages.values()), weights, 1 - decay)
        self.updates += 1

    def decay(self) -> float:
        """d of the next update."""
        warmup = self.config.warmup
        return min(self.config.decay, (1 + self.updates) / (warmup + self.updates)) if warmup else self.config.decay

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the averaged weights. No second copy is made of weights in float32."""
        assert not self._is_applied, "the averages are applied already"
        own = {name: weight.data for name, weight in self._weights.items()}
        self._is_applied = True
        try:
            for name, weight in self._weights.items():
                weight.data = self._averages[name].to(weight.dtype)
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = own[name]
            self._is_applied = False

    def bytes(self) -> int:
        """Memory of the averages."""
        return sum(average.numel() * average.element_size() for average in self._averages.values())

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the names of their weights, for a checkpoint; with `updates` all that is needed to go on."""
        return dict(self._averages)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Puts `tensors()` and `updates` back. Raises `InputError` where they are of another model."""
        if tensors.keys() != self._averages.keys():
            names = sorted(tensors.keys() ^ self._averages.keys())
            raise InputError(f"the averages of a checkpoint are of another model: {names[0]} is in one of both alone")
        for name, average in self._averages.items():
            if tensors[name].shape != average.shape:
                raise InputError(
                    f"the average of {name} has shape {tuple(tensors[name].shape)} in the checkpoint, expected "
                    f"{tuple(average.shape)}: another model?"
                )
            average.copy_(tensors[name])
        self.updates = updates


def _widened(tensor: Tensor) -> Tensor:
    """In bfloat16 an average would not move: 1 - d is less than half a unit in its last place."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
