"""What a liquid can do before any readout: separation, and the ranks that approximation rests on."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from verim.neuro.liquid import Liquid, filtered, poisson
from verim.ops.spiking import Events

_FILTER = 5.0  # milliseconds: two input trains are as far apart as their traces, filtered so


class Separation(NamedTuple):
    """Distances of inputs and of the states they lead to, by how much of a train was drawn anew.

    `chance` is the distance of states that the same input leads to from other first voltages: what is not above it
    is not separation.
    """

    inputs: Float[Tensor, "shares"]
    states: Float[Tensor, "shares"]
    chance: float


class Ranks(NamedTuple):
    """Of the matrix of states, a row an input: `kernel` over different inputs, `generalisation` over like ones.

    Legenstein & Maass 2007 (Neural Networks 20, 323): the kernel rank bounds what a linear readout can tell apart,
    the generalisation rank is the VC dimension's stand-in; their difference predicts how well a circuit computes.
    """

    kernel: int
    generalisation: int


def _trains(rows: int, channels: int, milliseconds: float, rate: float, step: float, seed: int) -> Events:
    generator = torch.Generator().manual_seed(seed)
    rates = torch.full((rows, round(milliseconds / step), channels), rate)
    return poisson(rates, step, generator)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square over channels and samples, of each row."""
    return (first - second).square().mean((1, 2)).sqrt()


def separation(
    liquid: Liquid,
    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0),
    trials: int = 20,
    milliseconds: float = 500.0,
    rate: float = 20.0,
    seed: int = 0,
) -> Separation:
    """Mean distance of states for pairs of Poisson trains; the second is the first with a share of it drawn anew."""
    channels, step = liquid.config.inputs, liquid.config.step
    first, other = (_trains(trials, channels, milliseconds, rate, step, seed + k).dense() for k in (0, 1))
    generator = torch.Generator().manual_seed(seed + 2)
    own = liquid.states(Events.from_dense(first, step))
    drawn = torch.rand(first.shape, generator=generator)
    inputs, states = [], []
    for share in shares:
        second = Events.from_dense(torch.where(drawn < share, other, first), step)
        near = filtered(Events.from_dense(first, step), _FILTER, _FILTER), filtered(second, _FILTER, _FILTER)
        inputs.append(_distance(*near).mean())
        states.append(_distance(own, liquid.states(second)).mean())
    chance = _distance(own, liquid.states(Events.from_dense(first, step), seed=seed + 3)).mean()
    return Separation(torch.stack(inputs), torch.stack(states), float(chance))


def ranks(
    liquid: Liquid,
    rows: int | None = None,
    milliseconds: float = 500.0,
    rate: float = 20.0,
    jitter: float = 4.0,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Ranks:
    """Ranks of the states at the end of `rows` inputs (as many as neurons, at most 200, where nothing is said).

    Like inputs are one train whose spikes are moved by a normal `jitter` (milliseconds). A direction counts if its
    singular value is more than `tolerance` of the largest of the states of different inputs.
    """
    config = liquid.config
    rows = rows or min(config.count, 200)
    different = _trains(rows, config.inputs, milliseconds, rate, config.step, seed)
    template = _trains(1, config.inputs, milliseconds, rate, config.step, seed + 1)
    like = jittered(template, rows, jitter, torch.Generator().manual_seed(seed + 2))
    values = [torch.linalg.svdvals(_last(liquid, events)) for events in (different, like)]
    least = tolerance * float(values[0].max())
    kernel, generalisation = (int((part > max(least, 1e-9)).sum()) for part in values)
    return Ranks(kernel, generalisation)


def _last(liquid: Liquid, events: Events) -> Tensor:
    return liquid.states(events, every=events.length * events.step)[:, -1].double()


def jittered(template: Events, rows: int, deviation: float, generator: torch.Generator) -> Events:
    """`rows` copies of the only row of `template`, each spike moved by a normal time (ms), within its ends."""
    _, steps = template.rows_and_steps()
    moved = steps + deviation / template.step * torch.randn(rows, len(template), generator=generator)
    inside = (moved.round() >= 0) & (moved.round() < template.length)
    row, spike = inside.nonzero(as_tuple=True)
    shape = (rows, template.length, template.channels)
    return Events.from_times(row, moved.round().long()[row, spike], template.channel[spike], shape, template.step)
