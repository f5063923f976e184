"""The surrogate gradient of a spiking network: its adjoint, walked back in time, rows side by side on the threads.

With g the gradients of voltages, of excitatory and inhibitory currents, ψ the surrogate derivative (0 while a neuron
is refractory) and z the spikes, a step back is, for neuron n,

    gz = dL/dz + Σ over its synapses w g_current[target, t + delay]       gv ← ψ gz + gv (1 - z) where not refractory
    g_current ← decay g_current + from_current gv                         gv ← decay gv
    dL/dw += z g_current[target, t + delay]

The path through the reset is left out, as Zenke & Ganguli do. Spikes that the network has not fired have a gradient
too: unlike the forward pass this one visits every synapse at every step.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.memory import address_of
from verim.ops.spiking.cpu import ring_offsets
from verim.ops.spiking.memory import INT32, INT64, array_at
from verim.ops.spiking.network import Neurons, Synapses, slots_of
from verim.ops.workers import run_tasks

_SYNAPSE_NANOSECONDS, _NEURON_NANOSECONDS = 2.0, 4.0  # of one synapse's and one neuron's step, measured
_MARKERS: dict[torch.dtype, Any] = {torch.float32: np.float32(0), torch.float64: np.float64(0)}


def gradients(
    inputs: Tensor | None,
    spikes: Tensor,
    slopes: Tensor,
    dspikes: Tensor,
    neurons: Neurons,
    feedforward: Synapses | None,
    recurrent: Synapses | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """Of the inputs, of both kinds of weights, of the current; None for what is not there."""
    batch, length, count = spikes.shape
    slots = slots_of(feedforward, recurrent)
    factors = torch.tensor(neurons.propagators()[:6], dtype=torch.float64).to(spikes)
    dinputs = None if inputs is None else torch.empty_like(inputs)
    parts = (feedforward, inputs if feedforward is not None else None, dinputs), (recurrent, spikes, None)
    held: list[Tensor | None] = []
    dweights: list[Tensor | None] = []
    sizes: list[int] = []
    for synapses, came, dcame in parts:
        if synapses is None or came is None:
            held += [None] * 6
            dweights.append(None)
            sizes.append(0)
            continue
        own = spikes.new_zeros(batch, len(synapses.targets))
        pointers, weights = synapses.pointers.to(torch.int64).contiguous(), synapses.weights.detach().to(spikes)
        held += [
            pointers,
            ring_offsets(synapses, count),
            weights.contiguous(),
            came.to(spikes).contiguous(),
            own,
            dcame,
        ]
        dweights.append(own)
        sizes.append(synapses.source_count)
    dcurrent = torch.empty_like(spikes)
    ring = spikes.new_zeros(batch, slots, 2, count)
    adjoints = spikes.new_zeros(batch, 4, count)
    arguments = (
        *(_MARKERS[spikes.dtype], length, count, slots, factors.data_ptr(), *sizes),
        *(address_of(tensor) for tensor in held),
        *(tensor.data_ptr() for tensor in (spikes, slopes, dspikes, dcurrent, ring, adjoints)),
    )
    synapse_count = sum(len(part.targets) for part in (feedforward, recurrent) if part is not None)
    nanoseconds = batch * length * (_SYNAPSE_NANOSECONDS * synapse_count + _NEURON_NANOSECONDS * count)
    run_tasks(_walk_back, batch, nanoseconds, 0, arguments)
    summed = [None if part is None else part.sum(0) for part in dweights]
    return dinputs if feedforward is not None else None, summed[0], summed[1], dcurrent


@njit(nogil=True)
def _row_gradient(source: int, has_fired: bool, base: int, ring: Any, synapses: Any, dweights: Any) -> Any:
    """What a spike of `source` would change, and, if it fired, what each of its weights would."""
    pointers, places, weights = synapses
    end, total = len(ring), 0 * ring[0]
    for synapse in range(pointers[source], pointers[source + 1]):
        place = base + places[synapse]
        if place >= end:
            place -= end
        total += weights[synapse] * ring[place]
        if has_fired:
            dweights[synapse] += ring[place]
    return total


@compiled
def _walk_back(
    first: int,
    last: int,
    scratch: int,
    like: Any,
    length: int,
    count: int,
    slots: int,
    factors_at: int,
    in_sources: int,
    sources: int,
    in_pointers_at: int,
    in_places_at: int,
    in_weights_at: int,
    inputs_at: int,
    in_dweights_at: int,
    dinputs_at: int,
    pointers_at: int,
    places_at: int,
    weights_at: int,
    unused_spikes_at: int,
    dweights_at: int,
    unused_dspikes_at: int,
    spikes_at: int,
    slopes_at: int,
    dspikes_at: int,
    dcurrent_at: int,
    ring_at: int,
    adjoints_at: int,
) -> None:
    """Rows `first` … `last` - 1. Compiled; addresses end in `_at`, 0 for what is not there.

    The ring holds the gradients of the currents, excitatory and inhibitory, of the steps t + 1 … t + slots.
    """
    factors = array_at(factors_at, 6, like)
    size = factors.itemsize
    decay, decay_e, from_e = factors[0], factors[1], factors[2]
    decay_i, from_i, gain = factors[3], factors[4], factors[5]
    zero = 0 * like
    in_pointers, pointers = array_at(in_pointers_at, in_sources + 1, INT64), array_at(pointers_at, sources + 1, INT64)
    in_synapses = in_pointers[in_sources] if in_pointers_at != 0 else 0
    synapses = pointers[sources] if pointers_at != 0 else 0
    in_rows = in_pointers, array_at(in_places_at, in_synapses, INT32), array_at(in_weights_at, in_synapses, like)
    rows = pointers, array_at(places_at, synapses, INT32), array_at(weights_at, synapses, like)
    for row in range(first, last):
        ring = array_at(ring_at + row * 2 * slots * count * size, 2 * slots * count, like)
        adjoints = array_at(adjoints_at + row * 4 * count * size, 4 * count, like)
        gv, gz = adjoints[:count], adjoints[count : 2 * count]
        ge, gi = adjoints[2 * count : 3 * count], adjoints[3 * count :]
        in_dweights = array_at(in_dweights_at + row * in_synapses * size, in_synapses, like)
        dweights = array_at(dweights_at + row * synapses * size, synapses, like)
        for t in range(length - 1, -1, -1):
            cells, in_cells = (row * length + t) * count * size, (row * length + t) * in_sources * size
            z, psi = array_at(spikes_at + cells, count, like), array_at(slopes_at + cells, count, like)
            dz, dcurrent = array_at(dspikes_at + cells, count, like), array_at(dcurrent_at + cells, count, like)
            base = (t % slots) * 2 * count
            if dinputs_at != 0:
                came = array_at(inputs_at + in_cells, in_sources, like)
                dcame = array_at(dinputs_at + in_cells, in_sources, like)
                for source in range(in_sources):
                    dcame[source] = _row_gradient(source, came[source] > 0, base, ring, in_rows, in_dweights)
            for n in range(count):
                gz[n] = dz[n]
                if pointers_at != 0:
                    gz[n] += _row_gradient(n, z[n] > 0, base, ring, rows, dweights)
            # What lay here, of step t + slots, has been read for the last time; step t - 1 reads that of step t.
            ring[base : base + count] = ge
            ring[base + count : base + 2 * count] = gi
            for n in range(count):
                g = psi[n] * gz[n] + (gv[n] if z[n] == 0 else zero) if psi[n] > 0 else zero
                dcurrent[n] = gain * g
                gv[n] = decay * g
                ge[n] = decay_e * ge[n] + from_e * g
                gi[n] = decay_i * gi[n] + from_i * g
