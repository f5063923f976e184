"""The spiking network: its kernel against its definition, its pieces against the whole, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import force_backend
from verim.ops.spiking import Events, Neurons, State, Synapses, cpu, initial_state, simulate, spiking
from verim.ops.spiking.cost import forward_cost, synaptic_events


def synapses(
    sources: int, neurons: int, degree: int, seed: int, dynamic: bool = False, longest: int = 7, scale: float = 30.0
) -> Synapses:
    """Random connections in float64, a fifth of the sources inhibitory."""
    generator = torch.Generator().manual_seed(seed)
    count = sources * degree

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    start = torch.arange(sources).repeat_interleave(degree)
    weights = (6 if dynamic else 1) * scale * torch.where(start % 5 > 0, uniform(0.1, 0.5), uniform(-2.0, -1.0))
    dynamics = {"use": uniform(0.05, 0.9), "depression": uniform(20, 500), "facilitation": uniform(5, 800)}
    return Synapses.between(
        start,
        torch.randint(neurons, (count,), generator=generator),
        weights,
        torch.randint(1, longest + 1, (count,), generator=generator),
        source_count=sources,
        dynamics=dynamics if dynamic else None,
    )


def inputs(batch: int, length: int, sources: int, rate: float = 0.08, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, sources, generator=generator) < rate).double()


def population(count: int, **changes: object) -> Neurons:
    kinds = torch.where(torch.arange(count) % 5 > 0, 3.0, 2.0)
    return Neurons(count, **{"step": 0.5, "background": 13.5, "refractory": kinds, **changes})  # type: ignore[arg-type]


def leaves(state: State) -> list[Tensor]:
    """All tensors of a state."""
    parts = [part for part in state if part is not None]
    return [leaf for part in parts for leaf in (part if isinstance(part, tuple) else (part,))]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.sampled_from([0, 1, 2, 7, 150]),
    count=st.sampled_from([1, 2, 17, 63, 64, 65, 130]),
    dynamic=st.booleans(),
    longest=st.sampled_from([1, 2, 9]),
    time=st.sampled_from([6.0, 10.0, 30.0]),
)
def test_the_kernel_fires_at_the_same_steps_as_the_definition(
    batch: int, length: int, count: int, dynamic: bool, longest: int, time: float
) -> None:
    neurons = population(count, membrane_time=time)
    network = synapses(11, count, 6, 1, dynamic, longest), synapses(count, count, 4, 2, dynamic, longest)
    x = inputs(batch, length, 11)
    spikes, state = spiking(x, neurons, *network, return_state=True)
    with force_backend("reference"):
        expected, final = spiking(x, neurons, *network, return_state=True)
    assert torch.equal(spikes, expected)
    for got, want in zip(leaves(state), leaves(final), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    if length == 150 and batch and count > 2:
        assert spikes.sum() > 10


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 90), max_size=4), dynamic=st.booleans(), reference=st.booleans())
def test_a_simulation_in_pieces_is_the_whole(cuts: list[int], dynamic: bool, reference: bool) -> None:
    neurons, network = population(20), (synapses(5, 20, 6, 1, dynamic), synapses(20, 20, 4, 2, dynamic))
    x, current = inputs(2, 90, 5), torch.randn(2, 90, 20, generator=torch.Generator().manual_seed(5)).double()
    with force_backend("reference" if reference else "auto"):
        whole, final = spiking(x, neurons, *network, current, return_state=True)
        state, pieces = None, []
        for low, high in zip([0, *sorted(cuts)], [*sorted(cuts), 90], strict=True):
            piece, state = spiking(x[:, low:high], neurons, *network, current[:, low:high], state, return_state=True)
            pieces.append(piece)
    assert torch.equal(torch.cat(pieces, 1), whole)
    assert state is not None
    for got, want in zip(leaves(state), leaves(final), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dynamic", [False, True])
def test_events_are_the_dense_spikes(dtype: torch.dtype, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    neurons = population(40, background=15.5)
    network = [synapses(n, 40, 5, n, dynamic).to(dtype) for n in (9, 40)]
    x = inputs(3, 120, 9).to(dtype)
    dense, final = spiking(x, neurons, *network, return_state=True)
    monkeypatch.setattr(cpu, "_SPIKES_AT_ONCE", 1)  # room for one step: the kernel stops and goes on at every step
    events, state = simulate(neurons, 120, Events.from_dense(x, 0.5), *network)
    assert torch.equal(events.dense(dtype), dense)
    assert dense.dtype is dtype and dense.sum() > 10
    for got, want in zip(leaves(state), leaves(final), strict=True):
        assert torch.equal(got, want)
    with force_backend("reference"):
        again, _ = simulate(neurons, 120, Events.from_dense(x, 0.5), *network)
    if dtype is torch.float64:
        assert torch.equal(again.channel, events.channel) and torch.equal(again.offsets, events.offsets)


def test_rows_of_a_batch_know_nothing_of_each_other_and_threads_change_nothing() -> None:
    neurons, network = population(70), (synapses(9, 70, 8, 1, True), synapses(70, 70, 6, 2, True))
    x = inputs(5, 300, 9)
    together = spiking(x, neurons, *network)
    alone = torch.cat([spiking(x[row : row + 1], neurons, *network) for row in range(5)])
    assert torch.equal(together, alone)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(spiking(x, neurons, *network), together)
    finally:
        torch.set_num_threads(before)


def test_the_rate_under_a_constant_current_is_the_formula() -> None:
    """v(t) = I + (reset - I) exp(-t / τ): the interval is the refractory time + τ ln((I - reset) / (I - θ))."""
    background = torch.tensor([14.9, 15.5, 17.0, 30.0])
    neurons = Neurons(4, step=0.1, refractory=2.0, reset=5.0, membrane_time=20.0, background=background)
    spikes, _ = simulate(neurons, 50_000)
    above = background[1:].double()
    expected = 1000 / (2.0 + 20 * torch.log((above - 5) / (above - 15)))
    assert spikes.counts()[0, 0] == 0
    torch.testing.assert_close(spikes.rates()[0, 1:].double(), expected, rtol=0.02, atol=0)


def test_one_spike_makes_the_textbook_potential() -> None:
    """Through one synapse: v(t) = w R τ_s / (τ_m - τ_s) (exp(-t / τ_m) - exp(-t / τ_s)), exact at any step."""
    for step in (0.1, 1.0, 5.0):
        neurons = Neurons(1, step=step)
        line = Synapses.between(torch.tensor([0]), torch.tensor([0]), torch.tensor([2.0]).double(), 3, source_count=1)
        x = torch.zeros(1, 9, 1).double()
        x[0, 0] = 1
        _, state = spiking(x, neurons, line, return_state=True)
        elapsed = 5 * step  # it arrives with step 3, the last step is 8
        expected = 2.0 * 3 / 27 * (math.exp(-elapsed / 30) - math.exp(-elapsed / 3))
        assert state.voltage.item() == pytest.approx(expected, rel=1e-12)


def test_dynamic_synapses_follow_the_recursion() -> None:
    """Amplitudes A u_k R_k of Markram, Wang & Tsodyks 1998, from spikes 20 ms apart: here a facilitating synapse."""
    base, depression, facilitation = 0.05, 125.0, 1200.0
    kinds = {"use": base, "depression": depression, "facilitation": facilitation}
    line = Synapses.between(
        torch.tensor([0]),
        torch.tensor([0]),
        torch.ones(1).double(),
        source_count=1,
        dynamics={name: torch.tensor([value], dtype=torch.float64) for name, value in kinds.items()},
    )
    neurons = Neurons(1, step=1.0, excitatory_time=1e-3)  # the current is gone before the next step
    x = torch.zeros(1, 102, 1).double()
    x[0, :100:20] = 1
    state, got = None, []
    for t in range(102):
        _, state = spiking(x[:, t : t + 1], neurons, line, state=state, return_state=True)
        got.append(state.excitatory.item())
    use, resource, expected = base, 1.0, []
    for _ in range(5):
        expected.append(use * resource)
        resource = 1 + (resource - use * resource - 1) * math.exp(-20 / depression)
        use = base + use * (1 - base) * math.exp(-20 / facilitation)
    assert got[1:100:20] == pytest.approx(expected, rel=1e-9)
    assert expected[3] > expected[0] * 2


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), delay=st.sampled_from([1, 4]), count=st.sampled_from([3, 20]))
def test_surrogate_gradients_are_those_of_the_definition(seed: int, delay: int, count: int) -> None:
    neurons = population(count, background=14.0)
    into, among = synapses(6, count, 5, seed, longest=delay), synapses(count, count, 4, seed + 1, longest=delay)
    generator = torch.Generator().manual_seed(seed)
    x = inputs(2, 60, 6, 0.2, seed).requires_grad_()
    current = torch.randn(2, 60, count, generator=generator).double().requires_grad_()
    weights = [part.weights.clone().requires_grad_() for part in (into, among)]
    outward = torch.randn(2, 60, count, generator=generator).double()

    def gradients() -> list[Tensor]:
        parts = (replace(part, weights=own) for part, own in zip((into, among), weights, strict=True))
        y = spiking(x, neurons, *parts, current)
        return [y.detach(), *torch.autograd.grad((y * outward).sum(), [x, *weights, current])]

    got = gradients()
    with force_backend("reference"):
        expected = gradients()
    assert torch.equal(got[0], expected[0])
    for one, other in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_a_network_learns_through_its_spikes() -> None:
    """Two layers learn to tell which half of the inputs fires first: no count of spikes can tell it."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    x = torch.zeros(64, 40, 8)
    for row in range(64):
        early, late = (slice(0, 4), slice(4, 8)) if labels[row] == 0 else (slice(4, 8), slice(0, 4))
        x[row, 2:10, early] = (torch.rand(8, 4) < 0.4).float()
        x[row, 22:30, late] = (torch.rand(8, 4) < 0.4).float()

    def dense(sources: int, targets: int) -> Synapses:
        start, end = torch.arange(sources).repeat_interleave(targets), torch.arange(targets).repeat(sources)
        return Synapses.between(start, end, 4 * torch.randn(sources * targets).abs(), source_count=sources)

    neurons = Neurons(16, step=1.0, membrane_time=10.0, reset=0.0, refractory=1.0, threshold=1.0, resistance=2.0)
    into, among = dense(8, 16), dense(16, 16)
    weights = [(part.weights * factor).requires_grad_() for part, factor in ((into, 0.1), (among, 0.01))]
    readout = torch.zeros(16, 2, requires_grad=True)
    optimiser = torch.optim.Adam([*weights, readout], 0.02)
    losses = []
    for _ in range(60):
        parts = (replace(part, weights=own) for part, own in zip((into, among), weights, strict=True))
        y = spiking(x, neurons, *parts)
        loss = torch.nn.functional.cross_entropy(y[:, 20:].mean(1) @ readout, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


def test_events_are_counted_and_cost_what_they_cost() -> None:
    part = synapses(4, 10, 3, 0)
    events = Events.from_times(torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([3, 3]), (1, 5, 4), 0.5)
    assert synaptic_events(events, part) == 6
    assert forward_cost(50, 6).flops == 13 * 50 + 6
    assert forward_cost(50, 0, 6).flops - forward_cost(50, 6).flops == 13 * 6


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(0, 6), channels=st.integers(1, 4), seed=st.integers(0, 99))
def test_events_are_what_they_were_made_of(batch: int, length: int, channels: int, seed: int) -> None:
    dense = inputs(batch, length, channels, 0.4, seed)
    events = Events.from_dense(dense, 1.0)
    assert torch.equal(events.dense(torch.float64), dense)
    assert torch.equal(events.counts().double(), dense.sum(1))
    rows, steps = events.rows_and_steps()
    shuffled = torch.randperm(len(events), generator=torch.Generator().manual_seed(seed))
    again = Events.from_times(rows[shuffled], steps[shuffled], events.channel[shuffled], (batch, length, channels), 1.0)
    assert torch.equal(again.channel, events.channel) and torch.equal(again.offsets, events.offsets)


def test_an_idle_network_stays_fast_and_finite() -> None:
    """Currents that fade for long would become numbers without a leading 1; they are nothing instead."""
    line = Synapses.between(torch.tensor([0]), torch.tensor([0]), torch.ones(1), source_count=1)
    x = torch.zeros(1, 4000, 1)
    x[0, 0] = 1
    _, state = spiking(x, Neurons(1), line, return_state=True)
    assert state.excitatory.item() == 0.0
    assert state.voltage.isfinite().all()


NEURONS = Neurons(3)
LINE = Synapses.between(torch.tensor([0]), torch.tensor([2]), torch.ones(1), source_count=1)
MISTAKES = {
    "threshold below the reset": (lambda: Neurons(3, threshold=10.0), "expected more than reset"),
    "no neurons": (lambda: Neurons(0), "count is 0"),
    "a step of NaN": (lambda: Neurons(3, step=math.nan), "step is nan"),
    "background of other neurons": (lambda: Neurons(3, background=torch.ones(4)), r"shape \(4,\)"),
    "a delay of no step": (
        lambda: Synapses.between(torch.tensor([0]), torch.tensor([0]), torch.ones(1), 0, source_count=1),
        "expected 1 step or more",
    ),
    "NaN weights": (lambda: replace(LINE, weights=LINE.weights * math.nan), "NaN"),
    "a source beyond the count": (
        lambda: Synapses.between(torch.tensor([1]), torch.tensor([0]), torch.ones(1), source_count=1),
        "as source_count says",
    ),
    "half of the dynamics": (lambda: replace(LINE, use=torch.ones(1)), "come together"),
    "use above 1": (
        lambda: replace(LINE, use=torch.tensor([1.1]), depression=torch.ones(1), facilitation=torch.ones(1)),
        "at most 1",
    ),
    "graded inputs": (lambda: spiking(torch.full((1, 2, 1), 0.5), NEURONS, LINE), "something else than 0 and 1"),
    "NaN inputs": (lambda: spiking(torch.full((1, 2, 1), math.nan), NEURONS, LINE), "something else than 0 and 1"),
    "inputs without synapses": (lambda: spiking(torch.zeros(1, 2, 1), NEURONS), "without feedforward"),
    "nothing": (lambda: spiking(None, NEURONS), "neither inputs nor current"),
    "NaN current": (lambda: spiking(None, NEURONS, current=torch.full((1, 2, 3), math.nan)), "NaN"),
    "targets beyond the neurons": (lambda: spiking(torch.zeros(1, 2, 1), Neurons(2), LINE), "reach neuron 2"),
    "recurrent synapses of others": (lambda: simulate(NEURONS, 5, recurrent=LINE), "expected the 3 neurons"),
    "another type": (lambda: spiking(torch.zeros(1, 2, 1).double(), NEURONS, LINE), "float64, expected"),
    "inputs of another length": (
        lambda: simulate(NEURONS, 5, Events.from_dense(torch.zeros(1, 4, 1), 0.1), LINE),
        "expected length = 5",
    ),
    "inputs of another step": (
        lambda: simulate(NEURONS, 4, Events.from_dense(torch.zeros(1, 4, 1), 1.0), LINE),
        "expected 0.1",
    ),
    "a state of another batch": (
        lambda: spiking(torch.zeros(1, 2, 1), NEURONS, LINE, state=initial_state(2, NEURONS, LINE, None, LINE.weights)),
        "state.voltage",
    ),
    "gradients through dynamic synapses": (
        lambda: spiking(
            inputs(1, 4, 5).requires_grad_(), population(5), synapses(5, 5, 2, 0, True), synapses(5, 5, 2, 0)
        ),
        "force_backend",
    ),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(mistake, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        mistake()


def test_a_second_derivative_is_refused() -> None:
    weights = LINE.weights.clone().requires_grad_()
    y = spiking(torch.ones(1, 4, 1), NEURONS, replace(LINE, weights=weights))
    with pytest.raises(InputError, match="second derivative"):
        torch.autograd.grad(y.sum(), weights, create_graph=True)
