"""What is simulated: neurons, synapses, and the state they are in between two pieces of a simulation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verim.errors import InputError

_PER_SYNAPSE = ("weights", "targets", "delays", "inhibitory", "use", "depression", "facilitation")


@dataclass(frozen=True)
class Neurons:
    """A population of leaky integrate-and-fire neurons with exponential synaptic currents.

    Times are in milliseconds, voltages in mV, currents in nA, the resistance in MΩ (any other set of units with
    voltage = resistance · current serves as well). Defaults are those of Maass, Natschläger & Markram 2002 (Neural
    Computation 14, 2531): τ_m = `membrane_time`, R_m = `resistance`, I_b = `background`, V_thresh = `threshold`,
    τ_s = `excitatory_time` and `inhibitory_time`.

    `refractory` and `background` are a number, or a tensor with one for every neuron.
    """

    count: int
    step: float = 0.1
    membrane_time: float = 30.0
    excitatory_time: float = 3.0
    inhibitory_time: float = 6.0
    resistance: float = 1.0
    rest: float = 0.0
    threshold: float = 15.0
    reset: float = 13.5
    refractory: float | Float[Tensor, "neurons"] = 3.0
    background: float | Float[Tensor, "neurons"] = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"Neurons: count is {self.count}, expected at least 1")
        for name in ("step", "membrane_time", "excitatory_time", "inhibitory_time", "resistance"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"Neurons: {name} is {value}, expected a positive finite number")
        for name in ("rest", "threshold", "reset"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"Neurons: {name} is {getattr(self, name)}, expected a finite number")
        if self.reset >= self.threshold or self.rest >= self.threshold:
            raise InputError(
                f"Neurons: threshold is {self.threshold}, expected more than reset ({self.reset}) and rest "
                f"({self.rest}): a neuron that rests above it would fire without end"
            )
        for name in ("refractory", "background"):
            value = torch.as_tensor(getattr(self, name))
            if value.dim() > 1 or (value.dim() == 1 and len(value) != self.count):
                raise InputError(
                    f"Neurons: {name} has shape {tuple(value.shape)}, expected a number or one for each of "
                    f"{self.count} neurons"
                )
            if not bool(value.isfinite().all()) or (name == "refractory" and bool((value < 0).any())):
                raise InputError(f"Neurons: {name} holds NaN, infinity or a negative time, expected finite numbers")

    def refractory_steps(self) -> Int[Tensor, "neurons"]:
        """For how many steps after a spike each neuron stays at `reset`."""
        times = torch.as_tensor(self.refractory, dtype=torch.float64)
        return (times / self.step).round().to(torch.int32).expand(self.count).contiguous()

    def propagators(self) -> "Propagators":
        """The factors of one step, exact for currents that decay exponentially (Rotter & Diesmann 1999)."""
        decay = math.exp(-self.step / self.membrane_time)

        def share(time: float) -> tuple[float, float]:
            own = math.exp(-self.step / time)
            if abs(time - self.membrane_time) < 1e-9 * self.membrane_time:  # the limit of what follows
                return own, self.resistance * self.step / self.membrane_time * decay
            return own, self.resistance * time / (time - self.membrane_time) * (own - decay)

        excitatory, inhibitory = share(self.excitatory_time), share(self.inhibitory_time)
        return Propagators(decay, *excitatory, *inhibitory, self.resistance * (1 - decay), self.rest * (1 - decay))

    def drive(self, like: Tensor) -> Float[Tensor, "neurons"]:
        """What rest and background current add to the voltage in a step, for the type and device of `like`."""
        factors = self.propagators()
        background = torch.as_tensor(self.background, dtype=torch.float64, device="cpu")
        total = factors.leak + factors.current * background
        return total.expand(self.count).to(like).contiguous()


class Propagators(NamedTuple):
    """v' = `voltage` v + `from_excitatory` e + `from_inhibitory` i + `current` I + `leak`; e' = `excitatory` e, …"""

    voltage: float
    excitatory: float
    from_excitatory: float
    inhibitory: float
    from_inhibitory: float
    current: float
    leak: float


@dataclass(frozen=True)
class Synapses:
    """Sparse connections from `sources` to neurons, as compressed sparse rows: a row holds a source's synapses.

    - `pointers` [sources + 1]: where each row begins, and where the last one ends.
    - `targets`, `delays` [synapses]: the neuron that a synapse reaches, after how many steps (at least 1).
    - `weights` [synapses]: what one spike adds to the target's synaptic current, negative for inhibition.
    - `inhibitory` [synapses]: whether that current decays with `Neurons.inhibitory_time`.
    - `use`, `depression`, `facilitation` [synapses]: U, D and F (milliseconds) of dynamic synapses (Markram, Wang &
      Tsodyks 1998, PNAS 95, 5323; the recursion stands at `verim.ops.spiking.spiking`), or None for static ones.
    """

    pointers: Int[Tensor, "rows"]
    targets: Int[Tensor, "synapses"]
    weights: Float[Tensor, "synapses"]
    delays: Int[Tensor, "synapses"]
    inhibitory: Bool[Tensor, "synapses"]
    use: Float[Tensor, "synapses"] | None = None
    depression: Float[Tensor, "synapses"] | None = None
    facilitation: Float[Tensor, "synapses"] | None = None

    def __post_init__(self) -> None:
        count = len(self.targets)
        for name in _PER_SYNAPSE:
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != (count,):
                raise InputError(
                    f"Synapses: {name} has shape {tuple(tensor.shape)}, expected one for each of {count} synapses"
                )
        rising = bool((self.pointers[1:] >= self.pointers[:-1]).all())
        if len(self.pointers) < 1 or int(self.pointers[0]) != 0 or int(self.pointers[-1]) != count or not rising:
            raise InputError(f"Synapses: pointers must rise from 0 to the number of synapses, {count}")
        if not self.weights.is_floating_point():
            raise InputError(f"Synapses: weights are {self.weights.dtype}, expected a floating-point data type")
        if not bool(self.weights.detach().isfinite().all()):
            raise InputError("Synapses: weights hold NaN or infinity, expected finite numbers")
        if count and int(self.delays.min()) < 1:
            raise InputError(f"Synapses: the shortest of delays is {int(self.delays.min())}, expected 1 step or more")
        if count and int(self.targets.min()) < 0:
            raise InputError("Synapses: targets hold a negative number, expected those of neurons")
        dynamics = [self.use, self.depression, self.facilitation]
        if any(part is None for part in dynamics) and not all(part is None for part in dynamics):
            raise InputError("Synapses: use, depression and facilitation come together or not at all")
        for name, most in (("use", 1.0), ("depression", math.inf), ("facilitation", math.inf)):
            part = getattr(self, name)
            if part is not None and not bool(((part > 0) & (part <= most)).all()):
                raise InputError(f"Synapses: {name} must be positive{' and at most 1' if most == 1 else ''} everywhere")

    @classmethod
    def between(
        cls,
        sources: Int[Tensor, "synapses"],
        targets: Int[Tensor, "synapses"],
        weights: Float[Tensor, "synapses"],
        delays: int | Int[Tensor, "synapses"] = 1,
        *,
        source_count: int,
        dynamics: Mapping[str, Float[Tensor, "synapses"]] | None = None,
    ) -> "Synapses":
        """Connections given one by one, in any order; `dynamics` maps use, depression and facilitation.

        Those with a negative weight are inhibitory.
        """
        if len(sources) and not 0 <= int(sources.min()) <= int(sources.max()) < source_count:
            raise InputError(
                f"Synapses: sources reach from {int(sources.min())} to {int(sources.max())}, expected 0 to "
                f"{source_count - 1} as source_count says"
            )
        delays = torch.as_tensor(delays, device=targets.device).expand(len(targets))
        order = torch.arange(len(targets), device=targets.device)
        for key in (targets, delays, sources):  # neighbours in a row then reach neighbours in memory
            order = order[torch.argsort(key[order], stable=True)]
        counts = torch.bincount(sources, minlength=source_count)
        pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        weights = weights[order]
        return cls(
            pointers,
            targets[order].to(torch.int32),
            weights,
            delays[order].to(torch.int32),
            weights.detach() < 0,
            **{name: part[order] for name, part in (dynamics or {}).items()},
        )

    @property
    def source_count(self) -> int:
        """How many sources there are."""
        return len(self.pointers) - 1

    @property
    def is_dynamic(self) -> bool:
        """Whether the synapses depress and facilitate."""
        return self.use is not None

    def longest_delay(self) -> int:
        """In steps; 1 where there are no synapses."""
        return int(self.delays.max()) if len(self.delays) else 1

    def sources(self) -> Int[Tensor, "synapses"]:
        """The source of each synapse."""
        rows = torch.arange(self.source_count, device=self.targets.device)
        return torch.repeat_interleave(rows, self.pointers.diff())

    def to(self, *target: torch.device | torch.dtype | str) -> "Synapses":
        """On another device, or with another floating-point type."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, tensor in moved.items():
            for to in target:
                if tensor is not None and not (isinstance(to, torch.dtype) and not tensor.is_floating_point()):
                    tensor = tensor.to(to)
            moved[name] = tensor
        return replace(self, **moved)


class Dynamics(NamedTuple):
    """The state of dynamic synapses: u and r at a synapse's last spike, the steps since its source's (-1: none)."""

    use: Float[Tensor, "batch synapses"]
    resource: Float[Tensor, "batch synapses"]
    since: Int[Tensor, "batch sources"]


class State(NamedTuple):
    """Everything that the next step depends on.

    `waiting` counts the steps that a neuron is still refractory; `pending[:, s]` is what arrives in s + 1 steps, at
    excitatory and at inhibitory currents.
    """

    voltage: Float[Tensor, "batch neurons"]
    excitatory: Float[Tensor, "batch neurons"]
    inhibitory: Float[Tensor, "batch neurons"]
    waiting: Int[Tensor, "batch neurons"]
    pending: Float[Tensor, "batch slots 2 neurons"]
    feedforward: Dynamics | None = None
    recurrent: Dynamics | None = None


def slots_of(*synapses: Synapses | None) -> int:
    """How many steps ahead spikes can arrive."""
    return max((part.longest_delay() for part in synapses if part is not None), default=1)


def initial_state(
    batch: int,
    neurons: Neurons,
    feedforward: Synapses | None,
    recurrent: Synapses | None,
    like: Tensor,
    voltage: Float[Tensor, "batch neurons"] | None = None,
) -> State:
    """No currents, nothing on its way, nobody refractory; at rest, or at `voltage`."""
    size = (batch, neurons.count)
    zeros = like.new_zeros(size)
    return State(
        torch.full_like(zeros, neurons.rest) if voltage is None else voltage.to(like).expand(size).clone(),
        zeros,
        zeros.clone(),
        torch.zeros(size, dtype=torch.int32, device=like.device),
        like.new_zeros(batch, slots_of(feedforward, recurrent), 2, neurons.count),
        _fresh(batch, feedforward, like),
        _fresh(batch, recurrent, like),
    )


def _fresh(batch: int, synapses: Synapses | None, like: Tensor) -> Dynamics | None:
    if synapses is None or synapses.use is None:
        return None
    never = torch.full((batch, synapses.source_count), -1, dtype=torch.int64, device=like.device)
    use = synapses.use.to(like).expand(batch, -1).clone()
    return Dynamics(use, torch.ones_like(use), never)
