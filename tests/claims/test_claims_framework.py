"""The framework of claims: figures judge values, claims are found and chosen, results are kept, failures told."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verim.claims import (
    AREAS,
    LONG_SECONDS,
    QUICK_SECONDS,
    AtLeast,
    AtMost,
    Between,
    Claim,
    Exactly,
    Expected,
    Goldens,
    Measurement,
    Verdict,
    budget_seconds,
    claim,
    claims,
    judge,
    measured,
    run,
    select,
)
from verim.claims.claim import REGISTRY
from verim.claims.judge import decided
from verim.claims.timing import growth, time_ratio
from verim.errors import CorruptError, InputError
from verim.report.claims import claims_page, machine_line, markdown

numbers = st.floats(-1e6, 1e6)


def one(value: float = 1.0) -> Measurement:
    return Measurement(value, "a test")


def made(
    id: str = "made", cost: float = 1.0, function: Callable[[], Any] = one, gpu: bool = False, **more: Any
) -> Claim:
    settings = {"expected": Exactly(1.0), "area": "scan", "text": "one is one", "source": "a <book>", **more}
    return Claim(id=id, cost=cost, kind="computed", function=function, gpu=gpu, **settings)


def no_number() -> Measurement:
    raise ArithmeticError("there is none")


def interrupted() -> Measurement:
    raise KeyboardInterrupt


@given(number=numbers, tolerance=st.floats(0, 10), value=numbers)
def test_exactly_is_a_range_around_its_number(number: float, tolerance: float, value: float) -> None:
    assert Exactly(number, tolerance).holds(value) == (number - tolerance <= value <= number + tolerance)
    assert Exactly(number, relative=0.5).holds(number)


@given(low=numbers, width=st.floats(0, 1e6), value=numbers)
def test_a_range_is_both_bounds(low: float, width: float, value: float) -> None:
    high = low + width
    assert Between(low, high).holds(value) == (AtLeast(low).holds(value) and AtMost(high).holds(value))


@pytest.mark.parametrize("expected", [Exactly(0, 1e9), AtLeast(-1e9), AtMost(1e9), Between(-1, 1), Goldens({"a": 0})])
def test_nan_holds_nowhere_and_several_numbers_hold_together(expected: Expected) -> None:
    assert not expected.holds(math.nan) and not expected.holds({"a": math.nan})
    assert expected.holds({"a": 0.0})
    assert not expected.holds({"a": 0.0, "b": math.nan})


def test_goldens_want_their_names() -> None:
    expected = Goldens({"a": 1.0, "b": 200.0}, relative=0.01)
    assert expected.holds({"b": 201.0, "a": 1.0})
    assert not expected.holds({"a": 1.0}) and not expected.holds(1.0)
    assert not expected.holds({"a": 1.02, "b": 200.0})
    assert str(expected) == "a: 1, b: 200 ± 1 %"
    with pytest.raises(InputError, match="lower end first"):
        Between(2, 1)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1.0, 1.0], Verdict.HOLDS), ([1.0, 2.0], Verdict.UNDER_CONDITIONS), ([2.0], Verdict.NOT_HERE)],
)
def test_the_verdict_is_derived(values: Sequence[float], verdict: Verdict) -> None:
    assert judge(Exactly(1.0), [one(value) for value in values]) is verdict


def test_an_interval_across_the_figure_leaves_doubt() -> None:
    assert decided(AtLeast(1.0), Measurement(2.0, "", (1.5, 3.0)))
    assert not decided(AtLeast(1.0), Measurement(2.0, "", (0.5, 3.0)))
    assert decided(AtLeast(1.0), Measurement(0.5, "", (0.1, 0.9))) and decided(AtLeast(1.0), one())
    assert not decided(Exactly(1.0), Measurement(2.0, "", (0.0, 3.0)))
    assert not decided(Exactly(1.0, 0.1), Measurement(1.0, "", (0.0, 3.0)))


def test_every_claim_is_well_formed_and_in_order() -> None:
    everything = claims()
    areas = [list(AREAS).index(found.area) for found in everything]
    assert areas == sorted(areas)
    for found in everything:
        assert found.text and not found.text.endswith(".") and found.source and str(found.expected), found.id
        assert f'id="{found.id}"' in found.code, "the code shown is the claim's own"
        assert found.place.startswith("verim/claims/areas/") and found.place.split(":")[1].isdigit()
    assert sum(found.cost for found in select(quick=True)) < 120


def test_what_is_unknown_is_told_with_what_is_near() -> None:
    with pytest.raises(InputError, match=r"did you mean (.* or )?scan-depth"):
        select(["scan-dept"])
    with pytest.raises(InputError, match="did you mean neuromorphic"):
        select(area_names=["neuro"])
    with pytest.raises(InputError, match="expected one of"):
        select(["§§"])


def test_selection_is_by_id_or_area_and_by_cost() -> None:
    assert [found.id for found in select(["scan-depth"])] == ["scan-depth"]
    assert {found.area for found in select(["scan-depth"], ["information"])} <= {"scan", "information"}
    assert all(found.cost <= QUICK_SECONDS for found in select(quick=True))
    assert select() == claims()


def test_a_decorator_refuses_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "taken", made("taken"))
    common: dict[str, Any] = {
        "id": "a", "area": "scan", "text": "t", "source": "s", "expected": AtMost(1), "cost": 1, "kind": "computed",
    }  # fmt: skip
    for wrong, words in (
        ({"id": "A b"}, "small letters"),
        ({"area": "nowhere"}, "expected one of scan"),
        ({"kind": "guessed"}, "measured, computed, simulated"),
        ({"cost": 0}, "above 0"),
        ({"id": "taken"}, "has this id already"),
    ):
        with pytest.raises(InputError, match=words):
            claim(**{**common, **wrong})(no_number)


def test_measuring_judges_and_starts_from_the_same_random_numbers() -> None:
    drawn: list[float] = []

    def draw() -> Measurement:
        drawn.append(torch.rand(()).item())
        return one()

    before = torch.random.get_rng_state()
    results = [measured(made(function=draw)) for _ in range(2)]
    assert drawn[0] == drawn[1] and bool((torch.random.get_rng_state() == before).all())
    assert results[0].verdict == "holds" and results[0].error is None
    assert results[0].measurements[0]["conditions"] == "a test" and results[0].machine["torch"] == torch.__version__


def test_a_claim_that_raises_has_failed_with_its_reason() -> None:
    result = measured(made(function=no_number))
    assert result.verdict == "failed" and result.error == "ArithmeticError: there is none"
    assert result.measurements == []


def test_without_a_device_a_claim_of_gpus_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = measured(made(function=no_number, gpu=True))
    assert result.verdict == "needs a GPU" and result.error is None


def test_infinite_values_go_through_a_file(tmp_path: Path) -> None:
    found = made(cost=2 * LONG_SECONDS, function=lambda: one(math.inf), expected=AtLeast(1))
    first = next(run([found], tmp_path))
    second = next(run([found], tmp_path))
    assert first.verdict == second.verdict == "holds" and second.saved
    assert second.measurements[0]["value"] == "inf" and second.measurements[0]["shown"] == "∞"


def test_long_claims_are_saved_and_short_ones_measured_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def count() -> Measurement:
        calls.append(1)
        return one()

    def again(cost: float, **more: float) -> bool:
        return next(run([made(cost=cost, function=count)], tmp_path, **more)).saved

    assert not again(1) and again(100) and not again(1) and len(calls) == 2
    assert not again(100, saved_above=math.inf) and len(calls) == 3
    assert again(1, saved_above=0) and len(calls) == 3
    assert next(run([made(cost=100, function=no_number)], tmp_path)).saved is False  # other code than was saved
    assert next(run([made(cost=100, function=no_number)], tmp_path)).saved is False  # failures are tried again
    (tmp_path / "made.json").write_text("{")
    with pytest.raises(CorruptError):
        next(run([made(cost=100)], tmp_path))


def test_a_budget_takes_the_cheapest_and_leaves_the_others_out(tmp_path: Path) -> None:
    several = [made("dear", 40), made("cheap", 1), made("middle", 20)]
    assert [result.claim["id"] for result in run(several, tmp_path, budget=30)] == ["cheap", "middle"]
    assert [result.claim["id"] for result in run(several, tmp_path)] == ["dear", "cheap", "middle"]


def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run([made("first"), made("second", function=interrupted)], tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["first.json"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), ("2 min", 120)])
def test_budgets_are_times(text: str, seconds: float) -> None:
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3s", "0s", "10 days"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a time"):
        budget_seconds(text)


def test_the_page_holds_failures_and_code_and_no_script(tmp_path: Path) -> None:
    results = [
        measured(made("fails", function=no_number)).as_json(),
        measured(made("differs", function=lambda: one(3.0), remark="<script>alert(1)</script>")).as_json(),
        measured(made("partly", function=lambda: [one(1.0), Measurement(2.0, "at length | 2", (0.0, 3.0))])).as_json(),
    ]
    path = tmp_path / "page.html"
    claims_page(results, ["left"], AREAS, path)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "a &lt;book&gt;" in page
    assert "does not hold here" in page and "ArithmeticError: there is none" in page and "Left out" in page
    assert "def no_number" in page and "test_claims_framework.py:" in page
    assert "✓ 1" in page and "✗ 2 (0 to 3)" in page and "reaches across" in page
    table = markdown(results, ["left"], AREAS)
    rows = [line for line in table.splitlines() if line.startswith("| one is one")]
    assert len(rows) == 3 and "at length \\| 2" in rows[2] and torch.__version__ in machine_line(results)


def test_ratios_and_growths_have_intervals() -> None:
    ratio = time_ratio(lambda: sum(range(2000)), lambda: sum(range(1000)), rounds=3)
    assert ratio.interval[0] <= ratio.value <= ratio.interval[1] and ratio.slower_seconds > 0
    found = growth([1, 2, 4], [5, 20, 80])
    assert found.exponent == pytest.approx(2) and found.interval == pytest.approx((2, 2))
