"""Claims of scans and of information: they hold, and a mutated implementation takes their verdict away."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from verim import measures, ops
from verim.claims import Measurement, measured, select
from verim.claims.areas import information_energy, scan
from verim.models import energy
from verim.ops.scan import algorithms, banks

EXACT = [
    claim
    for claim in select(area_names=["scan", "information"], quick=True)
    if not claim.gpu and claim.id != "information-energy-learns"
]


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_it_holds(claim: Any) -> None:
    result = measured(claim)
    assert result.error is None and result.verdict == "holds", result.measurements


def without(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """The function with arguments that cannot be changed."""
    return lambda *args, **kwargs: function(*args, **{**kwargs, **fixed})


def one_step_more(scan_of: Callable[..., Any]) -> Callable[..., Any]:
    """A scan that does a combine too many."""

    def mutated(*args: Any) -> Any:
        found = scan_of(*args)
        return replace(found, steps=(*found.steps, algorithms.Step(1, ())))

    return mutated


MUTATIONS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "scan-depth": (algorithms, "hillis_steele", one_step_more(algorithms.hillis_steele)),
    "scan-work-blelloch": (algorithms, "blelloch", one_step_more(algorithms.blelloch)),
    "scan-work-hillis-steele": (algorithms, "hillis_steele", lambda f, x: algorithms.blelloch(f, x, 0)),
    "scan-equal-results": (ops, "prefix_sum", lambda x, dim: x.flip(dim).cumsum(dim).flip(dim)),
    "scan-needs-no-commutativity": (
        algorithms,
        "blelloch",
        lambda f, x, identity: replace(algorithms.sequential(lambda left, right: f(right, left), x), total=None),
    ),
    "scan-mamba-is-a-scan": (ops, "selective_scan", lambda u, delta, A, B, C: torch.zeros_like(u)),
    "scan-banks-lose": (banks, "strided", without(banks.strided, banks=banks.Banks(count=16))),
    "scan-banks-blelloch": (banks, "conflicts", without(banks.conflicts, padded=False)),
    "information-certain": (measures, "entropy", lambda p: -(p * (p + 1e-3).log()).sum(-1)),
    "information-uniform": (measures, "entropy", lambda p: measures.cross_entropy(p, p) / math.log(2)),
    "information-divergence-positive": (measures, "cross_entropy", lambda p, q: measures.entropy(q)),
    "information-divergence-asymmetric": (measures, "kl_divergence", lambda p, q: (p - q).square().sum(-1)),
    "information-decomposition": (measures, "kl_divergence", lambda p, q: (p - q).square().sum(-1)),
    "information-one-hot": (ops, "cross_entropy", lambda logits, targets: logits.logsumexp(-1).mean()),
    "information-stable": (
        measures,
        "surprise",
        lambda q, y: q.values.exp().sum(-1).log() - q.values.gather(-1, y[:, None])[:, 0],
    ),
    "information-mutual": (measures, "mutual_information", lambda joint: joint.sum()),
    "information-perplexity": (measures, "perplexity", lambda nats: 2**nats),
    "information-energy-shift": (energy, "score_matching", lambda function, x: function(x).mean()),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTATIONS[name])
    result = measured(select([name])[0])
    assert result.error is None and result.verdict in ("does not hold here", "holds under conditions")


def test_training_an_energy_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert information_energy.energy_learns(epochs=2).conditions.startswith("gain")
    monkeypatch.setattr(energy.EnergyLearner, "fit", lambda learner, x: learner)
    gain = information_energy.energy_learns(epochs=2)
    assert gain.value == 0.0 and select(["information-energy-learns"])[0].expected.holds(gain.value) is False


@pytest.mark.parametrize("function", [scan.crossover, scan.speed], ids=lambda function: function.__name__)
def test_times_are_ratios_with_intervals(function: Callable[..., list[Measurement]]) -> None:
    for found, length in zip(function(lengths=(64, 256)), (64, 256), strict=True):
        assert isinstance(found.value, float) and found.interval is not None
        assert 0 < found.interval[0] <= found.value <= found.interval[1] and f"n = {length}" in found.conditions


@pytest.mark.slow
def test_two_ranks_scan_like_one() -> None:
    result = measured(select(["scan-distributed"])[0])
    assert result.error is None and result.verdict == "holds", result.measurements
