"""Readouts and spike timing: against what they are defined to be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.neuro import LogisticClassifier, Ridge, RidgeClassifier, SpikeTiming


def clouds(samples: int = 120, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (samples,), generator=generator)
    centres = 3 * torch.randn(3, width, generator=generator)
    return centres[labels] + torch.randn(samples, width, generator=generator), labels * 10 - 7


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(3, 30), width=st.integers(1, 40), penalty=st.sampled_from([1e-3, 1.0]))
def test_ridge_is_where_its_gradient_is_zero(samples: int, width: int, penalty: float) -> None:
    generator = torch.Generator().manual_seed(samples * 100 + width)
    x, y = torch.randn(samples, width, generator=generator), torch.randn(samples, 2, generator=generator)
    ridge = Ridge(penalty).fit(x, y)
    z, error = ridge.scale(x.double()), ridge.predict(x) - y.double()
    torch.testing.assert_close(z.T @ error + penalty * samples * ridge.weights, torch.zeros(width, 2).double())
    assert Ridge(penalty).fit(x, y[:, 0]).predict(x).shape == (samples,)


def test_ridge_finds_a_line_whatever_the_scale_of_the_features() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.tensor([1e-4, 1.0, 1e5]) + 7
    y = x @ torch.tensor([1e4, 2.0, 1e-5]).double() + 3
    assert Ridge(1e-9).fit(x, y).score(x, y) > 0.999999
    constant = torch.cat([x, torch.full((200, 1), 5.0)], 1)
    assert Ridge(1e-9).fit(constant, y).score(constant, y) > 0.999999


@pytest.mark.parametrize("readout", [RidgeClassifier(1e-2), LogisticClassifier(1e-2)], ids=["ridge", "logistic"])
def test_classifiers_tell_clouds_apart_and_keep_labels(readout: RidgeClassifier | LogisticClassifier) -> None:
    x, labels = clouds()
    assert readout.fit(x[:60], labels[:60]).score(x[60:], labels[60:]) > 0.95
    assert set(readout.predict(x).tolist()) == {-7, 3, 13}


def test_the_logistic_readout_is_at_its_minimum() -> None:
    x, labels = clouds()
    readout = LogisticClassifier(0.1).fit(x, labels)
    targets = torch.nn.functional.one_hot((labels + 7) // 10, 3).double()
    gradient = readout.scale(x.double()).T @ (readout.decision(x).softmax(1) - targets) / len(x)
    assert (gradient + 0.1 * readout.weights).abs().max() < 1e-4


@pytest.mark.parametrize("readout", [Ridge(), RidgeClassifier(), LogisticClassifier()], ids=["r", "rc", "lc"])
def test_readouts_refuse_nan_and_other_lengths(readout: Ridge | RidgeClassifier | LogisticClassifier) -> None:
    x, labels = clouds()
    with pytest.raises(InputError, match="NaN"):
        readout.fit(torch.full_like(x, math.nan), labels)
    with pytest.raises(InputError, match="expected as many"):
        readout.fit(x, labels[:-1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), length=st.integers(0, 25), step=st.sampled_from([0.5, 1.0]))
def test_spike_timing_is_the_sum_over_all_pairs(seed: int, length: int, step: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = (
        (torch.rand(2, length, n, generator=generator, dtype=torch.float64) < 0.3).double() for n in (3, 2)
    )
    rule = SpikeTiming(0.01, 0.02, 15.0, 25.0, step=step)
    grown, shrunk = rule.changes(before, after)
    expected = torch.zeros(2, 3, 2, dtype=torch.float64)
    for row, early, source in before.nonzero().tolist():
        for other, late, target in after.nonzero().tolist():
            elapsed = step * (late - early)
            if row == other and elapsed > 0:
                expected[0, source, target] += 0.01 * math.exp(-elapsed / 15.0)
            if row == other and elapsed < 0:
                expected[1, source, target] += 0.02 * math.exp(elapsed / 25.0)
    torch.testing.assert_close(torch.stack([grown, shrunk]), expected)


@pytest.mark.parametrize("is_soft", [False, True])
def test_sources_that_come_first_grow_and_weights_stay_in_bounds(is_soft: bool) -> None:
    before, after = torch.zeros(1, 400, 2), torch.zeros(1, 400, 1)
    before[0, 3::20, 0] = after[0, 5::20, 0] = before[0, 7::20, 1] = 1
    weights = SpikeTiming(0.1, 0.1, 5.0, 5.0, is_soft=is_soft).update(torch.full((2, 1), 0.5), before, after)
    assert weights[0] > 0.5 > weights[1]
    assert weights.min() >= 0 and weights.max() <= 1


def test_spike_timing_refuses_what_are_no_spikes() -> None:
    with pytest.raises(InputError, match="0 and 1"):
        SpikeTiming().changes(torch.full((1, 3, 1), math.nan), torch.zeros(1, 3, 1))
    with pytest.raises(InputError, match="sources by targets"):
        SpikeTiming().update(torch.zeros(1, 1), torch.zeros(1, 3, 2), torch.zeros(1, 3, 1))
