"""What a simulation costs. It depends on the spikes: synaptic events are counted, not estimated."""

from verim.ops.cost import Cost
from verim.ops.spiking.events import Events
from verim.ops.spiking.network import Synapses


def synaptic_events(events: Events, synapses: Synapses) -> int:
    """How many times a spike of `events` reaches a synapse: the sum of its sources' numbers of synapses."""
    return int(synapses.pointers.diff()[events.channel.long()].sum())


def forward_cost(
    neuron_steps: int, static_events: int, dynamic_events: int = 0, element_bytes: int = 4, current: bool = False
) -> Cost:
    """Of neurons × steps × batch rows and of the synaptic events.

    A neuron's step is 3 multiply-adds and a sum for the voltage (and a multiply-add for a current of its own), one
    multiply-add for each synaptic current, a comparison and the count of refractory steps: 13 FLOPs. A synaptic event
    is one sum; through a dynamic synapse 13 more (two quotients, two exponentials, u and r, their product with the
    weight). Bytes: each event reads offset and weight and changes a ring entry; the state of the neurons stays in
    the caches, but for the ring's entries, read and cleared.
    """
    return Cost(
        flops=(15 if current else 13) * neuron_steps + static_events + 14 * dynamic_events,
        bytes=(4 + (1 if current else 0)) * element_bytes * neuron_steps
        + (4 + 3 * element_bytes) * static_events
        + (4 + 10 * element_bytes) * dynamic_events,
    )
