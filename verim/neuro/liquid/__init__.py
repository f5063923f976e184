"""Liquid state machines (Maass, Natschläger & Markram 2002): a fixed random circuit, and what reads it."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.neuro.liquid.column import Column, ColumnConfig
from verim.neuro.liquid.encoders import Cochlea, latency, poisson, regular
from verim.ops import linear_recurrence
from verim.ops.spiking import Events, initial_state, simulate

__all__ = ["Cochlea", "Column", "ColumnConfig", "Liquid", "filtered", "latency", "poisson", "regular"]

SILENT_HZ = 0.2
"""A liquid whose neurons fire less than this on average cannot tell its inputs apart."""
SATURATED_SHARE = 0.4
"""One that fires at more than this share of the rate that its refractory time allows cannot either."""


class Liquid:
    """The column as a filter: spikes in, its state out.

        liquid = Liquid(ColumnConfig(inputs=20, seed=1))
        states = liquid.states(events, every=20.0)      # [batch, samples, neurons]

    The liquid state is each neuron's spikes, filtered: x(t) = Σ over its spikes s ≤ t of exp(-(t - s) / `time`), with
    the membrane's time constant, 30 ms, as in the paper.
    """

    def __init__(self, config: ColumnConfig, time: float = 30.0) -> None:
        if time <= 0:
            raise InputError(f"Liquid: time is {time}, expected milliseconds, more than 0")
        self.config, self.time = config, time
        self.column = Column.build(config)

    def spikes(self, inputs: Events, seed: int | None = None) -> Events:
        """What the column fires. Every row begins with the column's own voltages, or with others drawn from `seed`.

        Warns where it is silent or saturated, with the rate. Raises `InputError` for inputs of other channels or steps.
        """
        column = self.column
        voltage = column.voltage
        if seed is not None:
            voltage = 13.5 + 1.5 * torch.rand(
                inputs.batch, self.config.count, generator=torch.Generator().manual_seed(seed)
            )
        state = initial_state(
            inputs.batch,
            column.neurons,
            column.feedforward,
            column.recurrent,
            column.recurrent.weights,
            voltage.expand(inputs.batch, -1),
        )
        fired, _ = simulate(column.neurons, inputs.length, inputs, column.feedforward, column.recurrent, state)
        self._warn(fired)
        return fired

    def states(self, inputs: Events, every: float = 20.0, seed: int | None = None) -> Float[Tensor, "batch samples n"]:
        """The liquid state every so many milliseconds."""
        return filtered(self.spikes(inputs, seed), self.time, every)

    def _warn(self, fired: Events) -> None:
        if not fired.batch or not fired.length:
            return
        rate = float(fired.rates().mean())
        most = 1000 / (float(torch.as_tensor(self.column.neurons.refractory).mean()) + self.config.step)
        if rate < SILENT_HZ:
            warnings.warn(
                f"the liquid is silent: {rate:.3g} Hz a neuron; raise strength, input_strength or the input's rates",
                stacklevel=3,
            )
        elif rate > SATURATED_SHARE * most:
            warnings.warn(
                f"the liquid is saturated: {rate:.3g} Hz a neuron of at most {most:.3g}; lower strength, "
                "input_strength or the input's rates",
                stacklevel=3,
            )


def filtered(events: Events, time: float, every: float) -> Float[Tensor, "batch samples channels"]:
    """Spikes filtered by exp(-t / `time`), read every `every` milliseconds; a last shorter part is left out.

    The sum over spikes is a scan: what a part brings by its end, and the decay from part to part.
    """
    steps = round(every / events.step)
    if steps < 1 or time <= 0:
        raise InputError(
            f"filtered: every is {every} ms, expected at least a step of {events.step} ms, and time above 0"
        )
    samples = events.length // steps
    rows, at = events.rows_and_steps()
    inside = at < samples * steps
    rows, at, channel = rows[inside], at[inside], events.channel[inside].long()
    part = at // steps
    age = ((part + 1) * steps - 1 - at).double() * events.step
    brought = torch.zeros(events.batch * samples * events.channels, dtype=torch.float64)
    brought.index_add_(0, (rows * samples + part) * events.channels + channel, torch.exp(-age / time))
    brought = brought.float().view(events.batch, samples, events.channels)
    decay = torch.exp(torch.tensor(-steps * events.step / time)).expand(events.channels)
    return linear_recurrence(decay.contiguous(), brought)
