"""Plans: from a budget to a size, its tokens, its loss and what it takes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from verim.errors import InputError
from verim.models import ARCHITECTURES
from verim.scaling.fit import fit_law
from verim.scaling.laws import Law
from verim.scaling.planning import Answer, PlanRequest, plan
from verim.scaling.planning.search import Dial
from verim.scaling.planning.sizes import Size
from verim.scaling.planning.source import law_of
from verim.scaling.published import LAWS

TRUTH = Law(E=1.0, A=20.0, B=300.0, alpha=0.35, beta=0.35)


@pytest.fixture(scope="module")
def day() -> Answer:
    """A day on 8 H100, its model used for 1e12 tokens."""
    return plan(PlanRequest(hours=24, inference_tokens=1e12, price=2.0))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finished study of a known law."""
    N, C = (values.ravel() for values in np.meshgrid(np.geomspace(5e3, 2e5, 6), [1e11, 3e11, 1e12]))
    D = C / 6 / N
    losses = np.asarray(TRUTH.loss(N, D)) * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(N)))
    runs = [
        {"non_embedding": n, "tokens": d, "bits_per_byte": loss, "budget": c}
        for n, d, loss, c in zip(N.tolist(), D.tolist(), losses.tolist(), C.tolist(), strict=True)
    ]
    law = {"E": fit_law(N, D, losses).law.E}
    content = {"budgets": [1e11, 3e11, 1e12], "architectures": {"transformer": {"runs": runs, "law": law}}}
    (tmp_path / "study.json").write_text(json.dumps(content))
    return tmp_path


def allocated(flops: float, law: str) -> tuple[Size, float]:
    """The size of a budget and its tokens."""
    size = Dial("transformer", 32_000, 2048, law_of(law, "transformer")).for_flops(flops)
    return size, flops / size.flops_per_token


def test_chinchillas_budget_gives_its_size() -> None:
    """5.76e23 FLOPs: 40 B parameters by the unrounded constants of Approach 3, where the rounded ones say 32 B."""
    found, _ = allocated(5.76e23, "chinchilla")
    assert found.total == pytest.approx(40e9, rel=0.06)
    rounded, _ = allocated(5.76e23, "chinchilla-rounded")
    assert rounded.total == pytest.approx(32e9, rel=0.06)


def test_epochs_law_gives_about_twenty_tokens_a_parameter() -> None:
    """As Approaches 1 and 2 do, near Chinchilla's size (70 B on 1.4 T)."""
    found, tokens = allocated(5.76e23, "epoch")
    assert tokens / found.total == pytest.approx(20, rel=0.15)
    assert found.total == pytest.approx(70e9, rel=0.1)


def test_rounded_constants_are_never_used_silently() -> None:
    for name, law in LAWS.items():
        said = plan(PlanRequest(flops=1e20, law=name, count=1)).warnings
        assert any("rounded" in warning for warning in said) == law.rounded, name


@pytest.mark.parametrize("law", LAWS)
def test_more_flops_never_give_a_higher_loss(law: str) -> None:
    surface = law_of(law, "transformer")
    losses = []
    for flops in np.geomspace(1e18, 1e24, 40).tolist():
        size, tokens = allocated(flops, law)
        losses.append(
            surface.optimum(flops).L if surface.follows_frontier else surface.loss(surface.count(size), tokens)
        )
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("hours", [0.7, 40.0])
def test_more_hours_never_give_a_higher_loss(hours: float) -> None:
    found = plan(PlanRequest(hours=hours, count=2))
    assert found.quarter is not None and found.quadruple is not None
    assert found.quarter.loss > found.allocation.loss > found.quadruple.loss
    for at, share in ((found.quarter, 0.25), (found.allocation, 1.0), (found.quadruple, 4.0)):
        assert at.seconds == pytest.approx(3600 * hours * share, rel=0.02)


def test_a_day_is_filled_and_all_of_it_is_said(day: Answer) -> None:
    values = day.to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["seconds"] == pytest.approx(86_400, rel=0.01)
    assert values["interval"][0] < values["loss"] < values["interval"][1]
    assert values["flops"] == pytest.approx(values["tokens"] * day.allocation.size.flops_per_token)
    assert values["tokens"] == values["steps"] * values["batch"] * values["length"]
    assert values["energy_joules"] == pytest.approx(8 * 700 * values["seconds"])
    assert values["cost"] == pytest.approx(2.0 * 8 * values["seconds"] / 3600)
    assert len(values["layouts"]) == 5 and values["fits"]
    first = values["layouts"][0]
    assert values["memory_bytes"] == first["memory_bytes"] == pytest.approx(sum(first["memory"].values()))
    assert first["memory_bytes"] < values["memory_available_bytes"] < 80e9
    assert first["step_seconds"] == pytest.approx(sum(first["seconds"].values()))
    assert first["step_seconds"] * values["steps"] == pytest.approx(values["seconds"])
    assert 0.2 < values["utilisation"] < 0.7
    assert values["quarter"]["loss"] > values["loss"] > values["quadruple"]["loss"]
    assert values["quarter"]["seconds"] == pytest.approx(86_400 / 4, rel=0.01)


def test_models_shrink_where_they_are_used(day: Answer) -> None:
    life = day.to_json()["life_cycle"]
    planned, cheapest = life["planned"], life["cheapest"]
    assert cheapest["parameters"] < planned["parameters"] and cheapest["tokens"] > planned["tokens"]
    assert cheapest["training_flops"] > planned["training_flops"]
    assert life["saved"] == pytest.approx(1 - cheapest["total_flops"] / planned["total_flops"]) and life["saved"] > 0
    reached = day.law.loss(cheapest["parameters"], cheapest["tokens"])
    assert reached == pytest.approx(day.law.loss(planned["parameters"], planned["tokens"]), rel=1e-6)


def test_seventy_billion_parameters_are_said_not_to_fit_without_sharding() -> None:
    found = plan(PlanRequest(parameters=70e9))
    assert found.allocation.size.total == pytest.approx(70e9, rel=0.05)
    assert any("without sharding" in warning for warning in found.warnings)
    assert any("offload" in warning for warning in found.warnings)
    assert found.unsharded is not None and found.unsharded.memory_bytes > 1e12
    alone = plan(PlanRequest(parameters=700e9, count=1))
    assert alone.allocation.seconds is None and alone.to_json()["layouts"] == []
    assert any("no layout" in warning for warning in alone.warnings)


def test_a_budget_far_from_the_laws_range_is_warned_of_in_decades() -> None:
    said = plan(PlanRequest(flops=3e26, law="chinchilla", count=8)).warnings
    assert any("5.0 decades above" in warning for warning in said)
    assert not any("decades" in warning for warning in plan(PlanRequest(flops=1e21, law="chinchilla")).warnings)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_planned(architecture: str) -> None:
    found = plan(PlanRequest(flops=1e19, architecture=architecture, count=2))
    assert found.allocation.size.architecture == architecture
    assert found.allocation.flops == pytest.approx(1e19, rel=0.01)
    assert found.ranking.best is not None


def test_three_times_eight_devices_share_a_batch() -> None:
    found = plan(PlanRequest(flops=1e20, count=24))
    assert found.job.batch % 3 == 0 and found.ranking.best is not None
    assert any(each.layout.parallel.rows == 24 for each in found.ranking.fitting)


def test_a_study_is_a_law(study: Path) -> None:
    law = law_of(str(study), "transformer")
    assert law.loss(1e5, 1e7) == pytest.approx(TRUTH.loss(1e5, 1e7), rel=0.01)
    band = law.interval(1e5, 1e7)
    assert band is not None and band.low < law.loss(1e5, 1e7) < band.high
    found = plan(PlanRequest(flops=1e13, law=str(study), count=1))
    assert found.to_json()["unit"] == "bits per byte" and found.job.size.config.vocab == 256
    assert any("1.0 decades above" in warning for warning in found.warnings)


def test_studies_that_are_not_whole_are_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of transformer"):
        law_of(str(study), "mamba")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not finished"):
        law_of(str(tmp_path / "empty"), "transformer")
    content = json.loads((study / "study.json").read_text())
    del content["architectures"]["transformer"]["law"]
    (study / "study.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not whole"):
        law_of(str(study), "transformer")
    content["architectures"]["transformer"] |= {"law": {"E": 1.0}, "runs": []}
    (study / "study.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not whole"):
        law_of(str(study), "transformer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "none of them; expected one of --hours, --minutes, --flops, --params"),
        ({"flops": 1e20, "hours": 1}, "--hours with --flops"),
        ({"flops": math.inf}, "flops: got inf"),
        ({"parameters": -1}, "params: got -1"),
        ({"flops": 1e20, "count": 0}, "count: got 0"),
        ({"flops": 1e20, "architecture": "lisp"}, "expected one of transformer"),
        ({"flops": 1e20, "device": "abacus"}, "expected one of this"),
        ({"flops": 1e20, "law": "moore"}, "expected one of chinchilla, epoch, kaplan"),
        ({"minutes": 1, "device": "this", "count": 2}, "with this machine"),
    ],
    ids=["none", "two", "inf", "negative", "count", "architecture", "device", "law", "machine"],
)
def test_what_cannot_be_planned_is_said(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(PlanRequest(**options))  # type: ignore[arg-type]
