"""The spiking network as it is defined: one step after the other, in plain PyTorch, any data type and device."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verim.ops.spiking.network import Dynamics, Neurons, State, Synapses, initial_state, slots_of


class _Spike(torch.autograd.Function):
    """1 where the voltage reaches the threshold; its derivative is the surrogate."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, scale: float, slope: float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.factors = scale, slope
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (distance,) = ctx.saved_tensors
        scale, slope = ctx.factors
        return gradients[0] / (scale * (1 + slope * distance.abs() / scale).square()), None, None


def spiking_reference(
    inputs: Float[Tensor, "batch length sources"] | None,
    neurons: Neurons,
    feedforward: Synapses | None,
    recurrent: Synapses | None,
    current: Float[Tensor, "batch length neurons"] | None,
    state: State | None,
    slope: float,
    shape: tuple[int, int],
    like: Tensor,
) -> tuple[Float[Tensor, "batch length neurons"], State]:
    """Spikes and the final state; the formulas stand at `verim.ops.spiking.spiking`. `shape` is (batch, length)."""
    batch, length = shape
    factors = neurons.propagators()
    drive, refractory = neurons.drive(like), neurons.refractory_steps().to(like.device)
    if state is None:
        state = initial_state(batch, neurons, feedforward, recurrent, like)
    voltage, excitatory, inhibitory, waiting, pending, *_ = state
    paths = [
        _Path(part, dynamics, neurons.step)
        for part, dynamics in ((feedforward, state.feedforward), (recurrent, state.recurrent))
        if part is not None
    ]
    slots = slots_of(feedforward, recurrent)
    outputs = []
    for t in range(length):
        voltage = factors.voltage * voltage + factors.from_excitatory * excitatory
        voltage = voltage + factors.from_inhibitory * inhibitory + drive
        if current is not None:
            voltage = voltage + factors.current * current[:, t]
        voltage = torch.where(waiting > 0, neurons.reset, voltage)
        arriving = torch.stack([excitatory * factors.excitatory, inhibitory * factors.inhibitory], 1) + pending[:, 0]
        excitatory, inhibitory = arriving.unbind(1)
        scale = neurons.threshold - neurons.rest
        spikes = _Spike.apply(voltage - neurons.threshold, scale, slope) * (waiting <= 0)
        fired = spikes.detach() > 0
        voltage = torch.where(fired, neurons.reset, voltage)
        waiting = torch.where(fired, refractory, (waiting - 1).clamp(min=0))
        outputs.append(spikes)
        pending = torch.cat([pending[:, 1:], torch.zeros_like(pending[:, :1])], 1)
        for path in paths:
            came = inputs[:, t] if path.synapses is feedforward and inputs is not None else spikes
            if path.synapses is recurrent or inputs is not None:
                pending = pending + path.arrivals(came.to(like), slots, neurons.count)
    y = torch.stack(outputs, 1) if outputs else like.new_zeros(batch, 0, neurons.count)
    dynamics = {id(path.synapses): path.dynamics() for path in paths}
    ends = (dynamics.get(id(part)) if part is not None else None for part in (feedforward, recurrent))
    return y, State(voltage, excitatory, inhibitory, waiting, pending, *ends)


class _Path:
    """Synapses with the state of their dynamics."""

    def __init__(self, synapses: Synapses, dynamics: Dynamics | None, step: float) -> None:
        self.synapses, self.step = synapses, step
        self.sources = synapses.sources()
        self.use = dynamics.use if dynamics is not None else None
        self.resource = dynamics.resource if dynamics is not None else None
        self.since = dynamics.since if dynamics is not None else None

    def dynamics(self) -> Dynamics | None:
        if self.use is None or self.resource is None or self.since is None:
            return None
        return Dynamics(self.use, self.resource, self.since)

    def arrivals(self, spikes: Tensor, slots: int, neurons: int) -> Float[Tensor, "batch slots 2 neurons"]:
        """What `spikes` [batch, sources] of this step bring, in 1 … `slots` steps."""
        batch = len(spikes)
        amounts = spikes[:, self.sources] * self.synapses.weights.to(spikes)
        if self.use is not None:
            amounts = amounts * self._efficacy(spikes.detach() > 0)
        delays, ports = self.synapses.delays.long() - 1, self.synapses.inhibitory.long()
        places = (delays * 2 + ports) * neurons + self.synapses.targets.long()
        empty = amounts.new_zeros(batch, slots * 2 * neurons)
        return empty.index_add(1, places, amounts).view(batch, slots, 2, neurons)

    def _efficacy(self, fired: Tensor) -> Tensor:
        """u r of each synapse where its source fires now, after the recursion from its last spike."""
        assert self.use is not None and self.resource is not None and self.since is not None
        kinds = self.synapses.use, self.synapses.depression, self.synapses.facilitation
        base, depression, facilitation = (part.to(self.use) for part in kinds if part is not None)
        before, now = self.since[:, self.sources], fired[:, self.sources]
        elapsed = (before + 1) * self.step
        use = base + self.use * (1 - base) * torch.exp(-elapsed / facilitation)
        resource = 1 + (self.resource - self.use * self.resource - 1) * torch.exp(-elapsed / depression)
        renewed = now & (before >= 0)
        self.use = torch.where(renewed, use, self.use)
        self.resource = torch.where(renewed, resource, self.resource)
        self.since = torch.where(fired, 0, torch.where(self.since >= 0, self.since + 1, -1))
        return self.use * self.resource
