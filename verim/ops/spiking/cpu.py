"""The spiking network on the CPU: all steps of a batch row in one call, rows side by side on the threads.

A step is three passes over the neurons, which LLVM turns into vectors (voltages; currents; who has reached the
threshold, by blocks), and then the synapses of those alone that have fired. What a spike brings lands in a ring of
`slots` rows, one a step ahead, each with the excitatory and the inhibitory currents side by side: a synapse is one
offset into the ring (delay, kind and target in one number) and one weight.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.memory import address_of
from verim.ops.spiking.events import Events
from verim.ops.spiking.memory import INT32, INT64, array_at
from verim.ops.spiking.network import Dynamics, Neurons, State, Synapses
from verim.ops.vectors import prefetch
from verim.ops.workers import run_tasks

_BLOCK = 64  # neurons looked at together for spikes
_SPIKES_AT_ONCE = 1 << 22  # room for so many in a call of the kernel, unless one step could bring more
_NEURON_NANOSECONDS = 1.0  # of one neuron's step, measured
_MARKERS: dict[torch.dtype, Any] = {torch.float32: np.float32(0), torch.float64: np.float64(0)}
# Currents below are nothing beside any voltage; as numbers without a leading 1 they would cost a hundred cycles each.
_LEAST = {torch.float32: 1e-30, torch.float64: 1e-290}
_NEVER = np.iinfo(np.int64).min  # the step of the last spike of a source that has not fired


class Run(NamedTuple):
    """What a simulation gives: its spikes, the state after it, and dense records where they were asked for."""

    channel: Tensor
    offsets: Tensor
    state: State
    spikes: Tensor | None
    slopes: Tensor | None


def run(
    inputs: Events | None,
    neurons: Neurons,
    feedforward: Synapses | None,
    recurrent: Synapses | None,
    current: Tensor | None,
    state: State,
    length: int,
    slope: float,
    is_dense: bool,
    keeps_slopes: bool,
) -> Run:
    """Simulates `length` steps from `state`, in its data type (float32 or float64). Unchecked."""
    like = state.voltage
    batch, count = like.shape
    spikes = like.new_zeros(batch, length, count) if is_dense else None
    slopes = like.new_empty(batch, length, count) if keeps_slopes else None
    v, e, i, waiting, pending = (part.clone(memory_format=torch.contiguous_format) for part in state[:5])
    work = State(v, e, i, waiting, pending)
    factors = torch.tensor(
        [
            *neurons.propagators()[:6],
            *(neurons.threshold, neurons.reset, slope, neurons.threshold - neurons.rest),
            _LEAST[like.dtype],
        ],
        dtype=torch.float64,
    ).to(like)
    drive, refractory = neurons.drive(like), neurons.refractory_steps()
    slots = work.pending.shape[1]
    own = [
        _rows_of(part, dynamics, neurons, slots, like)
        for part, dynamics in ((feedforward, state.feedforward), (recurrent, state.recurrent))
    ]
    currents = None if current is None else current.to(like.dtype).contiguous()
    channel_in = None if inputs is None else inputs.channel.to(torch.int32).contiguous()
    offsets_in = None if inputs is None else inputs.offsets.contiguous()
    capacity = max(count, min(length * count, _SPIKES_AT_ONCE // max(batch, 1))) + 1
    channel = torch.empty(batch, capacity, dtype=torch.int32)
    counts = torch.zeros(batch, length, dtype=torch.int64)
    reached, used = torch.zeros(2, batch, dtype=torch.int64)
    arguments = (
        _MARKERS[like.dtype],
        *(length, count, slots, capacity),
        *(factors.data_ptr(), drive.data_ptr(), refractory.data_ptr()),
        *(part.data_ptr() for part in work[:5]),
        *(address_of(channel_in), address_of(offsets_in), address_of(currents)),
        *(address for rows in own for address in rows.addresses),
        *(channel.data_ptr(), counts.data_ptr(), reached.data_ptr(), used.data_ptr()),
        *(address_of(spikes), address_of(slopes), neurons.step),
    )
    pieces: list[list[Tensor]] = [[] for _ in range(batch)]
    while batch and int(reached.min()) < length:
        nanoseconds = _NEURON_NANOSECONDS * count * float((length - reached).sum())
        run_tasks(_simulate, batch, nanoseconds, 0, arguments)
        for row, kept in enumerate(used.tolist()):
            pieces[row].append(channel[row, :kept].clone())
    ends = counts.flatten().cumsum(0).view(batch, length)
    starts = torch.cat([ends.new_zeros(1), ends[:, -1]])[:batch] if length else ends.new_zeros(batch)
    fired = [piece for row in pieces for piece in row]
    turned = work.pending.roll(-(length % slots), 1)
    final = State(*work[:4], turned, *(rows.dynamics(length) for rows in own))
    all_fired = torch.cat(fired) if fired else torch.empty(0, dtype=torch.int32)
    return Run(all_fired, torch.cat([starts[:, None], ends], 1), final, spikes, slopes)


class _Rows:
    """Synapses as the kernel reads them. Keeps alive what it has the addresses of."""

    def __init__(self, synapses: Synapses, dynamics: Dynamics | None, neurons: Neurons, slots: int, like: Tensor):
        self.tensors: list[Tensor | None] = [
            synapses.pointers.to(torch.int64).contiguous(),
            ring_offsets(synapses, neurons.count),
            synapses.weights.detach().to(like.dtype).contiguous(),
        ]
        self.last: Tensor | None = None
        self.state: tuple[Tensor, Tensor] | None = None
        if dynamics is None:
            self.tensors += [None] * 6
        else:
            kinds = synapses.use, synapses.depression, synapses.facilitation
            self.tensors += [part.to(like.dtype).contiguous() for part in kinds if part is not None]
            self.state = dynamics.use.clone(), dynamics.resource.clone()
            self.last = torch.where(dynamics.since >= 0, -1 - dynamics.since, _NEVER)
            self.tensors += [*self.state, self.last]
        self.addresses = (synapses.source_count, *(address_of(tensor) for tensor in self.tensors))

    def dynamics(self, length: int) -> Dynamics | None:
        if self.last is None or self.state is None:
            return None
        return Dynamics(*self.state, torch.where(self.last != _NEVER, length - 1 - self.last, -1))


class _NoRows:
    addresses = (0,) * 10

    def dynamics(self, length: int) -> None:
        return None


def _rows_of(
    synapses: Synapses | None, dynamics: Dynamics | None, neurons: Neurons, slots: int, like: Tensor
) -> _Rows | _NoRows:
    return _NoRows() if synapses is None else _Rows(synapses, dynamics, neurons, slots, like)


def ring_offsets(synapses: Synapses, neurons: int) -> Tensor:
    """Where each synapse's weight is added, counted from the ring's row of the present step."""
    places = synapses.delays.to(torch.int32) * 2
    return places.add_(synapses.inhibitory).mul_(neurons).add_(synapses.targets)


@njit(nogil=True)
def _deliver(
    source: int,
    base: int,
    ring: Any,
    pointers: Any,
    offsets: Any,
    weights: Any,
) -> None:
    """One spike of `source` to all its targets."""
    end = len(ring)
    for synapse in range(pointers[source], pointers[source + 1]):
        place = base + offsets[synapse]
        if place >= end:
            place -= end
        ring[place] += weights[synapse]


@njit(nogil=True)
def _deliver_dynamic(
    source: int,
    now: int,
    base: int,
    milliseconds: float,
    ring: Any,
    pointers: Any,
    offsets: Any,
    weights: Any,
    base_use: Any,
    depression: Any,
    facilitation: Any,
    use: Any,
    resource: Any,
    last: Any,
) -> None:
    """The same through synapses that depress and facilitate, brought up to date at this spike."""
    end = len(ring)
    is_renewed = last[source] != _NEVER
    elapsed = milliseconds * (now - last[source]) if is_renewed else 0.0
    last[source] = now
    for synapse in range(pointers[source], pointers[source + 1]):
        u, r = use[synapse], resource[synapse]
        if is_renewed:
            rest = base_use[synapse]
            r = 1 + (r - u * r - 1) * math.exp(-elapsed / depression[synapse])
            u = rest + u * (1 - rest) * math.exp(-elapsed / facilitation[synapse])
            use[synapse], resource[synapse] = u, r
        place = base + offsets[synapse]
        if place >= end:
            place -= end
        ring[place] += weights[synapse] * (u * r)


@njit(nogil=True)
def _integrate(v: Any, e: Any, i: Any, waiting: Any, drive: Any, factors: Any) -> None:
    decay, from_e, from_i, reset = factors[0], factors[2], factors[4], factors[7]
    for n in range(len(v)):
        moved = decay * v[n] + from_e * e[n] + from_i * i[n] + drive[n]
        v[n] = reset if waiting[n] > 0 else moved


@njit(nogil=True)
def _integrate_current(v: Any, e: Any, i: Any, waiting: Any, drive: Any, current: Any, factors: Any) -> None:
    decay, from_e, from_i, gain, reset = factors[0], factors[2], factors[4], factors[5], factors[7]
    for n in range(len(v)):
        moved = decay * v[n] + from_e * e[n] + from_i * i[n] + drive[n] + gain * current[n]
        v[n] = reset if waiting[n] > 0 else moved


@njit(nogil=True)
def _record_slopes(v: Any, waiting: Any, factors: Any, slopes: Any) -> None:
    """The surrogate derivative of each neuron's spike; 0 says that it is refractory, nothing else does."""
    threshold, slope, scale = factors[6], factors[8], factors[9]
    for n in range(len(v)):
        bend = 1 + slope * abs(v[n] - threshold) / scale
        slopes[n] = 0 if waiting[n] > 0 else 1 / (scale * bend * bend)


@njit(nogil=True)
def _count_down(waiting: Any) -> None:
    for n in range(len(waiting)):
        waiting[n] = max(waiting[n] - 1, 0)


@njit(nogil=True)
def _arrive(currents: Any, arriving: Any, decay: float, least: float) -> None:
    for n in range(len(currents)):
        current = decay * currents[n] + arriving[n]
        currents[n] = current if abs(current) > least else 0
    arriving[:] = 0


@njit(nogil=True)
def _find(v: Any, threshold: float, channel: Any, kept: int) -> int:
    """Adds those that have reached the threshold to `channel`, by blocks: most have none."""
    for block in range(0, len(v), _BLOCK):
        part = v[block : min(block + _BLOCK, len(v))]
        hits = np.int32(0)
        for n in range(len(part)):
            hits += np.int32(1) if part[n] >= threshold else np.int32(0)
        if hits == 0:
            continue
        for n in range(len(part)):
            channel[kept] = block + n  # overwritten by the next if this one has not
            kept += 1 if part[n] >= threshold else 0
    return kept


@njit(nogil=True)
def _ask_for(first: int, last: int, size: int, places_at: int, weights_at: int) -> None:
    """A row of synapses lies anywhere in memory: it comes while the row before it is delivered."""
    for place in range(first * 4, last * 4, 64):
        prefetch(places_at + place)
    for place in range(first * size, last * size, 64):
        prefetch(weights_at + place)


@compiled
def _simulate(
    first: int,
    last: int,
    scratch: int,
    like: Any,
    length: int,
    count: int,
    slots: int,
    capacity: int,
    factors_at: int,
    drive_at: int,
    refractory_at: int,
    voltage_at: int,
    excitatory_at: int,
    inhibitory_at: int,
    waiting_at: int,
    pending_at: int,
    in_channel_at: int,
    in_offsets_at: int,
    current_at: int,
    in_sources: int,
    in_pointers_at: int,
    in_places_at: int,
    in_weights_at: int,
    in_base_at: int,
    in_depression_at: int,
    in_facilitation_at: int,
    in_use_at: int,
    in_resource_at: int,
    in_last_at: int,
    sources: int,
    pointers_at: int,
    places_at: int,
    weights_at: int,
    base_at: int,
    depression_at: int,
    facilitation_at: int,
    use_at: int,
    resource_at: int,
    last_at: int,
    channel_at: int,
    counts_at: int,
    reached_at: int,
    used_at: int,
    spikes_at: int,
    slopes_at: int,
    milliseconds: float,
) -> None:
    """Rows `first` … `last` - 1, each from where it stopped until its end or until its room for spikes may not do.

    Compiled. Addresses end in `_at`, 0 for what is not there.
    """
    factors, drive = array_at(factors_at, 11, like), array_at(drive_at, count, like)
    refractory, size = array_at(refractory_at, count, INT32), factors.itemsize
    decay_e, decay_i, threshold, reset, least = factors[1], factors[3], factors[6], factors[7], factors[10]
    reached, used = array_at(reached_at, last, INT64), array_at(used_at, last, INT64)
    in_pointers = array_at(in_pointers_at, in_sources + 1, INT64)
    in_synapses = in_pointers[in_sources] if in_pointers_at != 0 else 0
    in_places = array_at(in_places_at, in_synapses, INT32)
    in_weights = array_at(in_weights_at, in_synapses, like)
    in_base, in_depression = (array_at(in_base_at, in_synapses, like), array_at(in_depression_at, in_synapses, like))
    in_facilitation = array_at(in_facilitation_at, in_synapses, like)
    pointers = array_at(pointers_at, sources + 1, INT64)
    synapses = pointers[sources] if pointers_at != 0 else 0
    places, weights = array_at(places_at, synapses, INT32), array_at(weights_at, synapses, like)
    base_use, depression = array_at(base_at, synapses, like), array_at(depression_at, synapses, like)
    facilitation = array_at(facilitation_at, synapses, like)
    for row in range(first, last):
        cells = row * count * size
        v, e = array_at(voltage_at + cells, count, like), array_at(excitatory_at + cells, count, like)
        i, waiting = array_at(inhibitory_at + cells, count, like), array_at(waiting_at + row * count * 4, count, INT32)
        ring = array_at(pending_at + 2 * slots * cells, 2 * slots * count, like)
        channel = array_at(channel_at + row * capacity * 4, capacity, INT32)
        counts = array_at(counts_at + row * length * 8, length, INT64)
        in_offsets = array_at(in_offsets_at + row * (length + 1) * 8, length + 1, INT64)
        in_channel = array_at(in_channel_at, in_offsets[length] if in_offsets_at != 0 else 0, INT32)
        in_use = array_at(in_use_at + row * in_synapses * size, in_synapses, like)
        in_resource = array_at(in_resource_at + row * in_synapses * size, in_synapses, like)
        in_last = array_at(in_last_at + row * in_sources * 8, in_sources, INT64)
        use = array_at(use_at + row * synapses * size, synapses, like)
        resource = array_at(resource_at + row * synapses * size, synapses, like)
        fired_last = array_at(last_at + row * sources * 8, sources, INT64)
        kept, t = 0, reached[row]
        while t < length and kept + count < capacity:
            base = (t % slots) * 2 * count
            if current_at == 0:
                _integrate(v, e, i, waiting, drive, factors)
            else:
                current = array_at(current_at + (row * length + t) * count * size, count, like)
                _integrate_current(v, e, i, waiting, drive, current, factors)
            _arrive(e, ring[base : base + count], decay_e, least)
            _arrive(i, ring[base + count : base + 2 * count], decay_i, least)
            if in_offsets_at != 0 and in_pointers_at != 0:
                for event in range(in_offsets[t], in_offsets[t + 1]):
                    source = in_channel[event]
                    if in_base_at == 0:
                        _deliver(source, base, ring, in_pointers, in_places, in_weights)
                    else:
                        _deliver_dynamic(
                            source,
                            t,
                            base,
                            milliseconds,
                            ring,
                            in_pointers,
                            in_places,
                            in_weights,
                            in_base,
                            in_depression,
                            in_facilitation,
                            in_use,
                            in_resource,
                            in_last,
                        )
            if slopes_at != 0:
                slopes = array_at(slopes_at + (row * length + t) * count * size, count, like)
                _record_slopes(v, waiting, factors, slopes)
            _count_down(waiting)
            before = kept
            kept = _find(v, threshold, channel, kept)
            counts[t] = kept - before
            for spike in range(before, kept):
                n = channel[spike]
                v[n] = reset
                waiting[n] = refractory[n]
                if pointers_at == 0:
                    continue
                if spike + 1 < kept:
                    later = channel[spike + 1]
                    _ask_for(pointers[later], pointers[later + 1], size, places_at, weights_at)
                if base_at == 0:
                    _deliver(n, base, ring, pointers, places, weights)
                else:
                    _deliver_dynamic(
                        n,
                        t,
                        base,
                        milliseconds,
                        ring,
                        pointers,
                        places,
                        weights,
                        base_use,
                        depression,
                        facilitation,
                        use,
                        resource,
                        fired_last,
                    )
            if spikes_at != 0:
                spikes = array_at(spikes_at + (row * length + t) * count * size, count, like)
                for spike in range(before, kept):
                    spikes[channel[spike]] = 1
            t += 1
        reached[row], used[row] = t, kept
