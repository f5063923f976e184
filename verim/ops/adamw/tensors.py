"""What an update works on: the tensors of a weight, and the numbers of its rule."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdamWRule:
    """The numbers of an update. `step` counts the updates of the weight, this one included: the first is 1."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: float


@dataclass(frozen=True, slots=True)
class AdamWTensors:
    """A weight w, its gradient g and its moments m, v: four tensors of one shape."""

    weight: Tensor
    gradient: Tensor
    average: Tensor
    square: Tensor

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.weight, self.gradient, self.average, self.square


@dataclass(frozen=True, slots=True)
class EightBitTensors:
    """A weight and its gradient, and as codes (uint8, of their shape) with scales (float32, one for 256 weights as they
    lie in memory) its moment m and the root √v of the other."""

    weight: Tensor
    gradient: Tensor
    average: Tensor
    average_scales: Tensor
    root: Tensor
    root_scales: Tensor
