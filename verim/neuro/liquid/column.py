"""The column of Maass, Natschläger & Markram 2002 (Neural Computation 14, 2531-2560): a random recurrent circuit."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verim.errors import InputError
from verim.ops.spiking import Neurons, Synapses

# By (source is inhibitory, target is inhibitory): C of the connection probability; means of U, D and F (seconds);
# mean of the scale A (nA); delay (milliseconds). From the paper's section on the circuit and its notes.
_CONNECTION = {(False, False): 0.3, (False, True): 0.2, (True, False): 0.4, (True, True): 0.1}
_DYNAMICS = {
    (False, False): (0.5, 1.1, 0.05),
    (False, True): (0.05, 0.125, 1.2),
    (True, False): (0.25, 0.7, 0.02),
    (True, True): (0.32, 0.144, 0.06),
}
_SCALE = {(False, False): 30.0, (False, True): 60.0, (True, False): -19.0, (True, True): -19.0}
_DELAY = {(False, False): 1.5, (False, True): 0.8, (True, False): 0.8, (True, True): 0.8}
_INPUT_SCALE = {False: 18.0, True: 9.0}
_PAIRS = tuple(_CONNECTION)


@dataclass(frozen=True)
class ColumnConfig:
    """A column, and what enters it.

    - `size`: neurons along each axis of the grid. The paper's column is 15 × 3 × 3.
    - `inputs`: input channels. Each reaches `input_share` of the neurons, drawn anew for each.
    - `reach`: λ, in grid distances. A connection from a to b exists with probability C exp(-(D(a, b) / λ)²).
    - `strength`: factor of all weights in the column; `input_strength`: of those from the inputs.
    - `inhibitory`: share of inhibitory neurons.
    - `is_dynamic`: whether synapses in the column depress and facilitate, as in the paper. Static ones have the
      weight U A that a dynamic one has at its first spike.
    - `step`: milliseconds.
    """

    size: tuple[int, int, int] = (15, 3, 3)
    inputs: int = 1
    reach: float = 2.0
    strength: float = 1.0
    input_strength: float = 1.0
    input_share: float = 0.3
    inhibitory: float = 0.2
    is_dynamic: bool = True
    step: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.size) != 3 or min(self.size) < 1:
            raise InputError(f"ColumnConfig: size is {self.size}, expected three numbers of neurons, each at least 1")
        if self.inputs < 1:
            raise InputError(f"ColumnConfig: inputs is {self.inputs}, expected at least 1")
        for name in ("reach", "step"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"ColumnConfig: {name} is {getattr(self, name)}, expected a positive finite number")
        for name in ("strength", "input_strength"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"ColumnConfig: {name} is {getattr(self, name)}, expected a finite number, 0 or more")
        for name in ("input_share", "inhibitory"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"ColumnConfig: {name} is {getattr(self, name)}, expected a share between 0 and 1")

    @property
    def count(self) -> int:
        """Neurons."""
        return math.prod(self.size)


@dataclass(frozen=True)
class Column:
    """The circuit that a configuration and its seed draw."""

    config: ColumnConfig
    neurons: Neurons
    feedforward: Synapses
    recurrent: Synapses
    positions: Int[Tensor, "neurons 3"]
    inhibitory: Bool[Tensor, "neurons"]
    voltage: Float[Tensor, "neurons"]

    @classmethod
    def build(cls, config: ColumnConfig) -> "Column":
        """Draws the circuit: neurons with the paper's constants, their kinds, synapses and first voltages."""
        generator = torch.Generator().manual_seed(config.seed)
        count = config.count
        axes = [torch.arange(size) for size in config.size]
        positions = torch.cartesian_prod(*axes).view(count, 3)
        inhibitory = torch.zeros(count, dtype=torch.bool)
        inhibitory[torch.randperm(count, generator=generator)[: round(config.inhibitory * count)]] = True
        neurons = Neurons(count, step=config.step, background=13.5, refractory=torch.where(inhibitory, 2.0, 3.0))
        voltage = 13.5 + 1.5 * torch.rand(count, generator=generator)
        recurrent = _among(config, positions, inhibitory, generator)
        feedforward = _into(config, inhibitory, generator)
        return cls(config, neurons, feedforward, recurrent, positions, inhibitory, voltage)


def _among(config: ColumnConfig, positions: Tensor, inhibitory: Tensor, generator: torch.Generator) -> Synapses:
    """Synapses in the column, each parameter drawn around the mean of its kind (`_spread`)."""
    distance = torch.cdist(positions.double(), positions.double())
    kind = 2 * inhibitory.long()[:, None] + inhibitory.long()[None, :]  # an index into _PAIRS
    likely = _of_kind(_CONNECTION.__getitem__)[kind] * torch.exp(-((distance / config.reach) ** 2))
    likely.fill_diagonal_(0)
    sources, targets = (torch.rand(likely.shape, generator=generator) < likely).nonzero(as_tuple=True)
    kinds = kind[sources, targets]
    amounts = config.strength * _gamma(_of_kind(_SCALE.__getitem__)[kinds], generator)
    dynamics = {}
    for place, (name, unit) in enumerate((("use", 1.0), ("depression", 1000.0), ("facilitation", 1000.0))):
        means = unit * _of_kind(lambda pair, place=place: _DYNAMICS[pair][place])[kinds]  # type: ignore[misc]
        dynamics[name] = _spread(means, generator)
    dynamics["use"] = dynamics["use"].clamp(max=1.0)
    if not config.is_dynamic:
        amounts = amounts * dynamics["use"]
    delays = (_of_kind(_DELAY.__getitem__)[kinds] / config.step).round().long().clamp(min=1)
    return Synapses.between(
        sources,
        targets,
        amounts.float(),
        delays,
        source_count=config.count,
        dynamics={name: part.float() for name, part in dynamics.items()} if config.is_dynamic else None,
    )


def _into(config: ColumnConfig, inhibitory: Tensor, generator: torch.Generator) -> Synapses:
    """Static synapses from each input to its share of the column."""
    chosen = torch.rand(config.inputs, config.count, generator=generator) < config.input_share
    sources, targets = chosen.nonzero(as_tuple=True)
    means = torch.where(inhibitory[targets], _INPUT_SCALE[True], _INPUT_SCALE[False])
    amounts = config.input_strength * _gamma(means, generator)
    return Synapses.between(sources, targets, amounts.float(), source_count=config.inputs)


def _of_kind(value: Callable[[tuple[bool, bool]], float]) -> Float[Tensor, "kinds"]:
    return torch.tensor([value(pair) for pair in _PAIRS], dtype=torch.float64)


def _spread(means: Tensor, generator: torch.Generator) -> Tensor:
    """Normal with a standard deviation of half the mean; what is not positive is drawn anew, uniform up to 2 means."""
    drawn = means * (1 + 0.5 * torch.randn(means.shape, generator=generator, dtype=means.dtype))
    uniform = 2 * means * torch.rand(means.shape, generator=generator, dtype=means.dtype).clamp(min=1e-3)
    return torch.where(drawn > 0, drawn, uniform)


def _gamma(means: Tensor, generator: torch.Generator) -> Tensor:
    """Gamma with a standard deviation of 100 % of the mean, which is the exponential distribution."""
    uniform = torch.rand(means.shape, generator=generator, dtype=torch.float64).clamp(min=1e-12)
    return -means.double() * torch.log(uniform)
