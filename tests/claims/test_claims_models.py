"""Claims of attention, linear models and local learning: exact ones hold, mutations are seen, times are well formed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from verim import neuro, ops
from verim.claims import Measurement, measured, select
from verim.claims.areas import attention, linear, linear_copying, neuromorphic_reservoirs
from verim.models import LanguageModel
from verim.neuro.liquid import quality
from verim.ops.attention import cost
from verim.recipes import liquid_templates, mixers

HOLD = (
    "attention-exact",
    "attention-recomputation-flops",
    "linear-state",
    "linear-state-attention",
    "linear-rwkv-both-ways",
    "linear-ssm-both-ways",
    "neuromorphic-hebb-rate",
    "neuromorphic-hebb-diverges",
    "neuromorphic-oja-norm",
    "neuromorphic-oja-angle",
    "neuromorphic-sanger-order",
    "neuromorphic-bcm-threshold",
    "neuromorphic-bcm-selective",
    "neuromorphic-memory-capacity",
)


@pytest.mark.parametrize("name", HOLD)
def test_it_holds(name: str) -> None:
    result = measured(select([name])[0])
    assert result.error is None and result.verdict == "holds", result.measurements


def forgetful(model: LanguageModel, tokens: torch.Tensor, state: Any = None, last: int | None = None) -> Any:
    """A model that begins anew at each call."""
    return _FORWARD(model, tokens, None, last)


_FORWARD = LanguageModel.forward
_ATTENTION, _BCM = ops.attention, neuro.BCM._step


def doubled(rule: Any, x: torch.Tensor) -> None:
    """A step of Oja's rule without its decay."""
    rule._weights = rule.components_ * 1.01


def deaf(rule: neuro.BCM, x: torch.Tensor) -> None:
    """A step of BCM whose threshold stays."""
    kept = rule.thresholds_
    _BCM(rule, x)
    rule.thresholds_ = kept


MUTATIONS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "attention-exact": (ops, "attention", lambda q, k, v: _ATTENTION(q, k, v, causal=q.dtype != torch.float32)),
    "attention-recomputation-flops": (
        cost,
        "backward_cost",
        lambda *shape: replace(cost.forward_cost(*shape), flops=2 * cost.forward_cost(*shape).flops),
    ),
    "linear-rwkv-both-ways": (LanguageModel, "forward", forgetful),
    "linear-ssm-both-ways": (LanguageModel, "forward", forgetful),
    "neuromorphic-hebb-rate": (neuro.Hebb, "partial_fit", lambda rule, x: setattr(rule, "growth_rate_", 1.0) or rule),
    "neuromorphic-hebb-diverges": (neuro.Hebb, "partial_fit", lambda rule, x: rule),
    "neuromorphic-oja-norm": (neuro.Oja, "_step", doubled),
    "neuromorphic-oja-angle": (neuro.Oja, "_step", lambda rule, x: None),
    "neuromorphic-sanger-order": (neuro.Sanger, "_decay", lambda rule, y, weights: y.square().sum() * weights),
    "neuromorphic-bcm-threshold": (neuro.BCM, "_step", deaf),
    "neuromorphic-memory-capacity": (
        neuromorphic_reservoirs,
        "memory_profile",
        lambda states, u, delays, washout: torch.ones(delays),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTATIONS[name])
    result = measured(select([name])[0])
    assert result.error is None and result.verdict == "does not hold here", result.measurements


def test_memory_of_forms_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    small = (256, 512)
    standard, tiled = (select([f"attention-memory-{form}"])[0].expected for form in ("standard", "tiled"))
    assert not tiled.holds(attention.memory_of_standard(small)[0].value)
    ours = attention.memory_of_tiled(small)[0].value
    monkeypatch.setitem(attention.FORMS, "tiled", attention.FORMS["standard"])
    mutated = attention.memory_of_tiled(small)[0].value
    assert not standard.holds(ours) and isinstance(ours, float) and isinstance(mutated, float) and mutated > ours + 0.5
    assert attention.recomputation_memory((512,))[0].value == pytest.approx(1.0)
    assert attention.traffic((64, 128))[1].value > attention.traffic((64,))[0].value  # type: ignore[operator]


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (attention.time, {"lengths": (64, 128)}),
        (attention.speed, {"lengths": (64, 128)}),
        (attention.window, {"lengths": (256, 512)}),
        (linear.time_of_mamba, {"lengths": (64, 128)}),
        (linear.time_of_rwkv, {"lengths": (64, 128)}),
        (linear.beats_attention, {"lengths": (64, 128)}),
        (linear.decode_time, {"lengths": (2, 64), "rounds": 3}),
        (linear.five_times, {"prompt": 16, "tokens": 2, "megabytes": 4, "most": 2}),
        (neuromorphic_reservoirs.readout_is_cheap, {"updates": 2, "units": 5, "length": 200}),
        (neuromorphic_reservoirs.liquid_separates, {"trials": 2}),
        (neuromorphic_reservoirs.liquid_computes, {"samples": 20, "seeds": 2}),
        (neuromorphic_reservoirs.narma, {"seeds": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_timed_or_simulated_is_well_formed(function: Callable[..., Any], options: dict[str, Any]) -> None:
    found = function(**options)
    for each in [found] if isinstance(found, Measurement) else found:
        several: Sequence[float] = [each.value] if isinstance(each.value, float) else list(each.value.values())
        assert several and all(isinstance(number, float) and number == number for number in several)
        assert each.conditions
        if each.interval is not None:  # of two points it is the value itself, but for rounding
            assert each.interval[0] - 1e-9 <= each.value <= each.interval[1] + 1e-9


def test_memory_over_generated_tokens_is_flat_where_the_state_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LINEAR", {"Mamba": linear.LINEAR["Mamba"], "RWKV-4": linear.ATTENTION})
    flat, growing = linear.memory_flat(tokens=200, watched=5)
    assert isinstance(flat.value, dict) and isinstance(growing.value, dict)
    assert flat.value["state"] == 1 and growing.value["state"] > 1.5
    assert not select(["linear-memory-flat"])[0].expected.holds(growing.value)


def test_copying_is_trained_as_the_recipe_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = []

    def train(trial: mixers.Trial, experiment: mixers.Experiment) -> dict[str, Any]:
        trials.append((trial.mixer, experiment.steps))
        return {"accuracy": 0.5, "longer": [0.2, 0.1], "steps": experiment.steps}

    monkeypatch.setattr(linear_copying, "train", train)
    assert measured(select(["linear-selective-copies"])[0]).verdict == "does not hold here"
    assert measured(select(["linear-time-invariant-fails"])[0]).verdict == "holds"
    assert trials == [("mamba", 2000), ("s4d", 2000)]


def test_a_liquid_that_hears_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quality, "separation", lambda liquid, shares, trials: quality.Separation(shares, torch.zeros(3), 1.0)
    )
    assert measured(select(["neuromorphic-liquid-separates"])[0]).verdict == "does not hold here"
    alike = {name: {"same or not": 0.5} for name in liquid_templates.READOUTS}
    monkeypatch.setattr(liquid_templates, "classify", lambda experiment, seed: alike)
    assert measured(select(["neuromorphic-liquid-computes"])[0]).verdict == "does not hold here"


@pytest.mark.slow
def test_the_quick_set_of_all_areas_is_measured_without_an_error() -> None:
    failed = {claim.id: error for claim in select(quick=True) if (error := measured(claim).error)}
    assert not failed
