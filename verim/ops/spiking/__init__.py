"""Networks of leaky integrate-and-fire neurons with exponential, static or dynamic synapses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_is_tensor, check_tensor
from verim.ops.backend import takes_fast_path
from verim.ops.derivatives import asked_for, is_recorded, refuse_second_derivative
from verim.ops.spiking import cpu
from verim.ops.spiking.backward import gradients
from verim.ops.spiking.events import Events
from verim.ops.spiking.network import Dynamics, Neurons, State, Synapses, initial_state, slots_of
from verim.ops.spiking.reference import spiking_reference

__all__ = ["Dynamics", "Events", "Neurons", "State", "Synapses", "initial_state", "simulate", "spiking"]

_NAME = "spiking"
_TYPES: dict[str, tuple[torch.dtype, ...]] = {"cpu": (torch.float32, torch.float64), "cuda": ()}
Spikes = Float[Tensor, "batch length neurons"]


@overload
def spiking(
    inputs: Float[Tensor, "batch length sources"] | None,
    neurons: Neurons,
    feedforward: Synapses | None = None,
    recurrent: Synapses | None = None,
    current: Spikes | None = None,
    state: State | None = None,
    slope: float = 10.0,
    return_state: Literal[False] = False,
) -> Spikes: ...


@overload
def spiking(
    inputs: Float[Tensor, "batch length sources"] | None,
    neurons: Neurons,
    feedforward: Synapses | None = None,
    recurrent: Synapses | None = None,
    current: Spikes | None = None,
    state: State | None = None,
    slope: float = 10.0,
    *,
    return_state: Literal[True],
) -> tuple[Spikes, State]: ...


def spiking(
    inputs: Float[Tensor, "batch length sources"] | None,
    neurons: Neurons,
    feedforward: Synapses | None = None,
    recurrent: Synapses | None = None,
    current: Spikes | None = None,
    state: State | None = None,
    slope: float = 10.0,
    return_state: bool = False,
) -> Any:
    """Spikes of a network of leaky integrate-and-fire neurons, step by step, with surrogate gradients.

        v̂_t = α v_{t-1} + κ_e e_{t-1} + κ_i i_{t-1} + (1 - α) (v_rest + R (I_b + `current`_t))    α = exp(-step / τ_m)
        e_t = exp(-step / τ_e) e_{t-1} + Σ w over the spikes that arrive;      i_t alike, for inhibitory synapses
        z_t = 1 where v̂_t ≥ v_threshold, else 0;      v_t = v_reset where z_t = 1, else v̂_t

    While a neuron is refractory v̂ = v_reset and z = 0. κ = R τ / (τ - τ_m) (exp(-step / τ) - α) makes a step exact
    for what happens between spikes (Rotter & Diesmann 1999, Biological Cybernetics 81, 381); spikes lie on the grid
    of steps, and one sent at step t reaches its target's current at step t + delay. A dynamic synapse (Markram, Wang &
    Tsodyks 1998, equations 1 and 2, as in Maass, Natschläger & Markram 2002) multiplies its weight by u r, which begin
    at U and 1; from one spike of its source to the next, Δ later,

        r ← 1 + (r - u r - 1) exp(-Δ / D)        u ← U + u (1 - U) exp(-Δ / F)        with the old u in the first

    - `inputs` [batch, length, sources]: zeros and ones, the spikes that enter through `feedforward`.
    - `recurrent`: synapses among the neurons themselves.
    - `current` [batch, length, neurons]: graded input, in the units of `Neurons.background`.
    - `state`: where to begin, as a call with `return_state=True` gives it: a sequence may be processed in pieces.

    The data type is that of the weights (float32, float64), or of `current` without synapses. Gradients go to the
    inputs, the weights and the current: z's derivative is replaced by 1 / (s (1 + `slope` |v̂ - v_threshold| / s)²)
    with s = v_threshold - v_rest (SuperSpike: Zenke & Ganguli 2018, Neural Computation 30, 1514); the path through
    the reset is left out, and the state is a constant. Through dynamic synapses only the reference has gradients.

    On the CPU one compiled call simulates all steps; only the synapses of neurons that fire are visited, and the
    threads share the batch. Elsewhere the definition runs in PyTorch. In float64 both fire at the same steps. The same
    input gives the same bits, whatever the number of threads. For long simulations without gradients,
    `simulate` takes and gives events, not a tensor of zeros. What a call costs is in `verim.ops.spiking.cost`: it
    depends on the spikes.

    Raises `InputError` (a ValueError) for wrong shapes, data types or devices, NaN, inputs that are not 0 or 1.

    >>> neurons = Neurons(1, step=1.0, threshold=1.0, reset=0.0, refractory=2.0)
    >>> spiking(None, neurons, current=torch.full((1, 9, 1), 40.0)).flatten()  # fires at once, then waits two steps
    tensor([1., 0., 0., 1., 0., 0., 1., 0., 0.])
    """
    like, batch, length = _check(inputs, neurons, feedforward, recurrent, current, state)
    if not takes_fast_path(_NAME, like, _TYPES):
        y, final = spiking_reference(
            inputs, neurons, feedforward, recurrent, current, state, slope, (batch, length), like
        )
        return (y, _detached(final)) if return_state else y
    if state is None:
        state = initial_state(batch, neurons, feedforward, recurrent, like)
    weights = [None if part is None else part.weights for part in (feedforward, recurrent)]
    if is_recorded(inputs, current, *weights):
        if any(part is not None and part.is_dynamic for part in (feedforward, recurrent)):
            raise InputError(
                f"{_NAME}: gradients through dynamic synapses are asked for, which the fast version has not; call it "
                'inside verim.ops.force_backend("reference"), or detach the weights'
            )
        holder: list[State] = []
        y = _Spiking.apply(inputs, *weights, current, (neurons, feedforward, recurrent, state, slope, length, holder))
        final = holder[0]
    else:
        events = None if inputs is None else Events.from_dense(inputs, neurons.step)
        result = cpu.run(events, neurons, feedforward, recurrent, current, state, length, slope, True, False)
        assert result.spikes is not None
        y, final = result.spikes, result.state
    return (y, final) if return_state else y


def simulate(
    neurons: Neurons,
    length: int,
    inputs: Events | None = None,
    feedforward: Synapses | None = None,
    recurrent: Synapses | None = None,
    state: State | None = None,
    batch: int | None = None,
) -> tuple[Events, State]:
    """`length` steps of the network that `verim.ops.spiking.spiking` defines: events in, events out, no gradients.

    - `inputs`: spikes of the sources of `feedforward`, `length` steps of them.
    - `batch`: independent rows where neither `inputs` nor `state` tell it (1).

    Data type and device are those of the state, or of the weights.

    >>> neurons = Neurons(2, background=torch.tensor([14.0, 16.0]))  # 15 mV is the threshold: the second fires
    >>> spikes, _ = simulate(neurons, 10_000)
    >>> spikes.counts()
    tensor([[ 0, 40]])
    """
    if length < 0:
        raise InputError(f"simulate: length is {length}, expected 0 steps or more")
    own = next((part.weights for part in (recurrent, feedforward) if part is not None), torch.empty(0))
    like = state.voltage if state is not None else own.detach()
    rows = {size for size in (inputs and inputs.batch, None if state is None else len(state.voltage), batch) if size}
    if len(rows) > 1:
        raise InputError(f"simulate: inputs, state and batch have {sorted(rows)} rows, expected one number of them")
    count = rows.pop() if rows else 1
    if inputs is not None and (inputs.length != length or feedforward is None):
        raise InputError(
            f"simulate: inputs have {inputs.length} steps, expected length = {length}, and feedforward "
            "synapses for them"
        )
    if inputs is not None and feedforward is not None and inputs.channels != feedforward.source_count:
        raise InputError(
            f"simulate: inputs have {inputs.channels} channels, expected the {feedforward.source_count} sources of "
            "feedforward"
        )
    if inputs is not None and abs(inputs.step - neurons.step) > 1e-9 * neurons.step:
        raise InputError(f"simulate: inputs have steps of {inputs.step} ms, expected {neurons.step} like the neurons")
    _check_network(neurons, feedforward, recurrent, state, count, like)
    if state is None:
        state = initial_state(count, neurons, feedforward, recurrent, like)
    with torch.no_grad():
        if takes_fast_path(_NAME, like, _TYPES):
            result = cpu.run(inputs, neurons, feedforward, recurrent, None, state, length, 1.0, False, False)
            return Events(result.channel, result.offsets, neurons.count, neurons.step), result.state
        dense = None if inputs is None else inputs.dense(like.dtype).to(like.device)
        y, final = spiking_reference(dense, neurons, feedforward, recurrent, None, state, 1.0, (count, length), like)
    return Events.from_dense(y, neurons.step), final


class _Spiking(torch.autograd.Function):
    """The fast version with surrogate gradients. Saves the spikes and their surrogate derivatives."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor | None,
        in_weights: Tensor | None,
        weights: Tensor | None,
        current: Tensor | None,
        network: tuple[Any, ...],
    ) -> Tensor:
        neurons, feedforward, recurrent, state, slope, length, holder = network
        events = None if inputs is None else Events.from_dense(inputs, neurons.step)
        result = cpu.run(events, neurons, feedforward, recurrent, current, state, length, slope, True, True)
        holder.append(result.state)
        assert result.spikes is not None and result.slopes is not None
        ctx.save_for_backward(inputs, in_weights, weights, result.spikes, result.slopes)
        ctx.network = neurons, feedforward, recurrent
        return result.spikes

    @staticmethod
    def backward(ctx: Any, *dspikes: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        inputs, in_weights, weights, spikes, slopes = ctx.saved_tensors
        neurons, *synapses = ctx.network
        parts = (
            None if part is None else replace(part, weights=own)
            for part, own in zip(synapses, (in_weights, weights), strict=True)
        )
        found: Sequence[Any] = gradients(inputs, spikes, slopes, dspikes[0].contiguous(), neurons, *parts)
        return (*asked_for(found, ctx.needs_input_grad[:4]), None)


def _detached(state: State) -> State:
    def cut(part: Any) -> Any:
        if isinstance(part, Dynamics):
            return Dynamics(*map(cut, part))
        return None if part is None else part.detach()

    return State(*map(cut, state))


def _check(
    inputs: Tensor | None,
    neurons: Neurons,
    feedforward: Synapses | None,
    recurrent: Synapses | None,
    current: Tensor | None,
    state: State | None,
) -> tuple[Tensor, int, int]:
    given = inputs if inputs is not None else current
    if given is None:
        raise InputError(f"{_NAME}: neither inputs nor current are given; without either, `simulate` takes a length")
    check_is_tensor(_NAME, "inputs" if inputs is not None else "current", given)
    if given.dim() != 3:
        raise InputError(
            f"{_NAME}: argument {'inputs' if inputs is not None else 'current'} has shape {tuple(given.shape)}, "
            "expected [batch, length, channels]"
        )
    batch, length = given.shape[:2]
    like = next((part.weights for part in (recurrent, feedforward) if part is not None), given).detach()
    if inputs is not None:
        if feedforward is None:
            raise InputError(f"{_NAME}: inputs are given without feedforward synapses, expected both")
        expected = "[batch, length, sources of feedforward]"
        check_tensor(_NAME, "inputs", inputs, (batch, length, feedforward.source_count), expected, like)
        if not bool(((inputs == 0) | (inputs == 1)).all()):
            raise InputError(f"{_NAME}: inputs hold something else than 0 and 1; graded input goes in as `current`")
    if current is not None:
        check_tensor(
            _NAME, "current", current, (batch, length, neurons.count), "[batch, length of inputs, neurons]", like
        )
        if not bool(current.detach().isfinite().all()):
            raise InputError(f"{_NAME}: current holds NaN or infinity, expected finite numbers")
    _check_network(neurons, feedforward, recurrent, state, batch, like)
    return like, batch, length


def _check_network(
    neurons: Neurons,
    feedforward: Synapses | None,
    recurrent: Synapses | None,
    state: State | None,
    batch: int,
    like: Tensor,
) -> None:
    if recurrent is not None and recurrent.source_count != neurons.count:
        raise InputError(
            f"{_NAME}: recurrent synapses have {recurrent.source_count} sources, expected the {neurons.count} neurons"
        )
    for name, part in (("feedforward", feedforward), ("recurrent", recurrent)):
        if part is None:
            continue
        if len(part.targets) and int(part.targets.max()) >= neurons.count:
            raise InputError(
                f"{_NAME}: {name} synapses reach neuron {int(part.targets.max())}, expected less than {neurons.count}"
            )
        if part.weights.dtype is not like.dtype or part.weights.device != like.device:
            raise InputError(
                f"{_NAME}: {name} weights are {part.weights.dtype} on {part.weights.device}, expected {like.dtype} on "
                f"{like.device}: convert them with Synapses.to"
            )
    if state is None:
        return
    shape = (batch, neurons.count)
    for name in ("voltage", "excitatory", "inhibitory"):
        check_tensor(_NAME, f"state.{name}", getattr(state, name), shape, "[batch, neurons]", like)
    pending = (batch, slots_of(feedforward, recurrent), 2, neurons.count)
    check_tensor(_NAME, "state.pending", state.pending, pending, "[batch, longest delay, 2, neurons]", like)
    if not bool(state.voltage.isfinite().all()):
        raise InputError(f"{_NAME}: state.voltage holds NaN or infinity, expected finite numbers")
