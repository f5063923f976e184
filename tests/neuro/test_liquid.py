"""Liquids: the column that is drawn, the spikes that enter, the state that leaves, and what it is worth."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.neuro import Cochlea, Column, ColumnConfig, Liquid
from verim.neuro.liquid import filtered, latency, poisson, regular
from verim.neuro.liquid.quality import jittered, ranks, separation
from verim.ops.spiking import Events


def test_connections_follow_the_papers_probabilities() -> None:
    """C exp(-(D / λ)²) by kind of pair: counted over columns, within three standard deviations."""
    scale = {(0, 0): 0.3, (0, 1): 0.2, (1, 0): 0.4, (1, 1): 0.1}
    expected, variance, found = dict.fromkeys(scale, 0.0), dict.fromkeys(scale, 0.0), dict.fromkeys(scale, 0)
    for seed in range(15):
        column = Column.build(ColumnConfig(seed=seed))
        kinds = column.inhibitory.long()
        assert int(kinds.sum()) == 27  # a fifth of 135
        likely = torch.exp(-((torch.cdist(column.positions.double(), column.positions.double()) / 2) ** 2))
        likely.fill_diagonal_(0)
        sources, targets = column.recurrent.sources(), column.recurrent.targets.long()
        for pair, most in scale.items():
            mine = (kinds[:, None] == pair[0]) & (kinds[None] == pair[1])
            p = most * likely[mine]
            expected[pair] += float(p.sum())
            variance[pair] += float((p * (1 - p)).sum())
            found[pair] += int(((kinds[sources] == pair[0]) & (kinds[targets] == pair[1])).sum())
    for pair, count in found.items():
        assert abs(count - expected[pair]) < 3 * math.sqrt(variance[pair])


def test_weights_dynamics_and_delays_are_of_their_kind() -> None:
    parts = [Column.build(ColumnConfig(size=(10, 8, 8), seed=seed)) for seed in range(2)]
    means = {(0, 0): (30, 0.5, 1100, 50), (0, 1): (60, 0.05, 125, 1200), (1, 0): (-19, 0.25, 700, 20)}
    for pair, (scale, use, depression, facilitation) in means.items():
        gathered: list[torch.Tensor] = []
        for column in parts:
            net, kinds = column.recurrent, column.inhibitory.long()
            assert net.use is not None and net.depression is not None and net.facilitation is not None
            mine = (kinds[net.sources()] == pair[0]) & (kinds[net.targets.long()] == pair[1])
            gathered.append(torch.stack([net.weights, net.use, net.depression, net.facilitation])[:, mine])
            assert set(net.delays[mine].tolist()) == {3 if pair == (0, 0) else 2}  # 1.5 and 0.8 ms, steps of 0.5
        got = torch.cat(gathered, 1).mean(1).tolist()
        assert got == pytest.approx([scale, use, depression, facilitation], rel=0.12)
    assert torch.equal(parts[0].recurrent.inhibitory, parts[0].recurrent.weights < 0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), every=st.sampled_from([1.0, 2.5, 7.0, 50.0]), length=st.sampled_from([0, 1, 30, 101]))
def test_the_liquid_state_is_the_sum_over_spikes(seed: int, every: float, length: int) -> None:
    dense = (torch.rand(2, length, 3, generator=torch.Generator().manual_seed(seed)) < 0.2).double()
    got = filtered(Events.from_dense(dense, 0.5), 30.0, every)
    steps = round(every / 0.5)
    assert got.shape == (2, length // steps, 3)
    for sample in range(length // steps):
        end = (sample + 1) * steps
        ages = 0.5 * (end - 1 - torch.arange(end))
        expected = (dense[:, :end] * torch.exp(-ages / 30.0)[:, None]).sum(1)
        torch.testing.assert_close(got[:, sample].double(), expected, rtol=1e-5, atol=1e-6)


def test_encoders_fire_at_their_rates() -> None:
    rates = torch.tensor([0.0, 40.0, 400.0]).expand(3, 20_000, 3)
    drawn = poisson(rates, 0.5, torch.Generator().manual_seed(0)).rates().mean(0)
    assert drawn[0] == 0
    assert drawn[1].item() == pytest.approx(40, rel=0.1)
    assert drawn[2].item() == pytest.approx(1000 / 0.5 * -math.expm1(-0.2), rel=0.03)
    steady = regular(rates, 0.5)
    assert steady.rates()[0].tolist() == pytest.approx([0, 40, 400], abs=0.2)
    _, steps = regular(rates[:1, :, 1:2], 0.5).rows_and_steps()
    assert set(steps.diff().tolist()) <= {49, 50, 51}


def test_latency_is_shorter_for_larger_values() -> None:
    events = latency(torch.tensor([[1.0, 0.5, 0.25, 0.0]]), 101, 1.0)
    assert events.channel.tolist() == [0, 1, 2]
    assert events.rows_and_steps()[1].tolist() == [0, 50, 75]


def test_a_tone_is_loudest_in_its_channel() -> None:
    cochlea = Cochlea(8000.0, channels=24)
    times = torch.arange(4000) / 8000
    tones = torch.tensor([300.0, 1000.0, 2500.0])
    rates = cochlea.rates(torch.sin(2 * math.pi * tones[:, None] * times))
    loudest = cochlea.frequencies()[rates.mean(1).argmax(1)]
    nearest = cochlea.frequencies()[(cochlea.frequencies()[None] - tones[:, None]).abs().argmin(1)]
    assert torch.equal(loudest, nearest)
    assert rates.max() == pytest.approx(150) and rates.min() >= 0
    assert rates.shape == (3, 500, 24)
    assert not cochlea.rates(torch.zeros(1, 800)).any()


def test_a_liquid_fades_without_connections_and_separates_with_them() -> None:
    found = [separation(Liquid(ColumnConfig(inputs=2, strength=s, seed=1)), (0.1, 1.0), trials=6) for s in (0.0, 4.0)]
    for part in found:
        assert part.inputs[0] < part.inputs[1] and part.states[0] < part.states[1]
    assert found[1].chance > 2 * found[0].chance  # connections carry other first voltages on
    assert found[1].states[1] > found[0].states[1]
    assert found[0].states[1] > 3 * found[0].chance


def test_ranks_tell_different_inputs_from_like_ones() -> None:
    liquid = Liquid(ColumnConfig(inputs=4, seed=1))
    found = ranks(liquid, rows=60)
    assert 0 < found.generalisation < found.kernel <= 60
    assert ranks(liquid, rows=20, jitter=0.0).generalisation == 1


def test_jitter_moves_spikes_and_loses_only_those_beyond_the_ends() -> None:
    template = poisson(torch.full((1, 400, 3), 50.0), 0.5, torch.Generator().manual_seed(0))
    copies = jittered(template, 5, 2.0, torch.Generator().manual_seed(1))
    assert copies.batch == 5 and len(copies) <= 5 * len(template)
    assert len(copies) > 4.5 * len(template)
    same = jittered(template, 2, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(same.dense()[0], template.dense()[0])


def test_silence_and_saturation_are_warned_of_with_the_rate() -> None:
    quiet = poisson(torch.full((1, 400, 1), 1.0), 0.5, torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"silent: [0-9.e-]+ Hz"):
        Liquid(ColumnConfig(input_strength=0.0, strength=0.0)).states(Events.from_dense(quiet.dense()[:, 40:], 0.5))
    loud = poisson(torch.full((1, 400, 8), 200.0), 0.5, torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"saturated: [0-9.]+ Hz a neuron of at most"):
        Liquid(ColumnConfig(inputs=8, strength=20.0, input_strength=20.0)).states(loud)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Liquid(ColumnConfig(inputs=8)).states(poisson(torch.full((1, 400, 8), 20.0), 0.5))


def test_the_same_seed_is_the_same_liquid() -> None:
    inputs = poisson(torch.full((2, 200, 1), 50.0), 0.5, torch.Generator().manual_seed(0))
    one, other, third = (Liquid(ColumnConfig(seed=seed)).states(inputs) for seed in (1, 1, 2))
    assert torch.equal(one, other) and not torch.equal(one, third)


MISTAKES = {
    "no reach": (lambda: ColumnConfig(reach=0.0), "reach is 0.0"),
    "a share above 1": (lambda: ColumnConfig(inhibitory=1.5), "inhibitory is 1.5"),
    "a flat size": (lambda: ColumnConfig(size=(3, 0, 3)), "size is"),
    "NaN strength": (lambda: ColumnConfig(strength=math.nan), "strength is nan"),
    "negative rates": (lambda: poisson(torch.full((1, 2, 1), -1.0), 1.0), "negative"),
    "NaN rates": (lambda: regular(torch.full((1, 2, 1), math.nan), 1.0), "NaN"),
    "values beyond 1": (lambda: latency(torch.tensor([[2.0]]), 5, 1.0), "within 0 … 1"),
    "a filter beyond the sound": (lambda: Cochlea(4000.0, highest=3800.0), "half the sample rate"),
    "NaN in a sound": (lambda: Cochlea(8000.0).rates(torch.full((1, 99), math.nan)), "finite"),
    "inputs of another liquid": (
        lambda: Liquid(ColumnConfig(inputs=2)).states(poisson(torch.ones(1, 9, 1), 0.5)),
        "1 channels, expected the 2",
    ),
    "inputs of another step": (
        lambda: Liquid(ColumnConfig(inputs=1)).states(poisson(torch.ones(1, 9, 1), 1.0)),
        "steps of 1.0 ms, expected 0.5",
    ),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_work_is_told(mistake, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        mistake()
