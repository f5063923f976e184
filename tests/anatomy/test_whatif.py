"""What-if: the ops of a step that did not run are those that do, prices are found again, and what a forecast says."""

import dataclasses
from pathlib import Path

import pytest

from verim.anatomy import Workload, model_config
from verim.anatomy.devices import device
from verim.anatomy.ledger import Op
from verim.anatomy.whatif import (
    FittedRates,
    Measured,
    Setting,
    TableRates,
    calibration,
    fit,
    forecast,
    measure,
    rates_here,
    step_of,
)
from verim.anatomy.whatif.calibration import steps_from_json, steps_to_json
from verim.anatomy.whatif.forecast import MEMORY_SHARE
from verim.anatomy.whatif.rates import BANDWIDTH, COMPUTE, work_of
from verim.errors import InputError

H100 = device("h100")
TINY = model_config("transformer", 16)


def op(name: str, flops: float, moved: float, calls: float = 1, seconds: float = 0.0, part: str = "forward") -> Op:
    return Op(name, part, "", "bfloat16", calls, seconds, 0.0, flops, 0.0, moved, 0.0)


def test_an_op_takes_the_most_of_compute_bytes_and_launch() -> None:
    rates = TableRates(H100)
    product = rates.estimate(op("aten.mm", 1e12, 1e6))
    assert product.bound == "compute"
    assert product.seconds == pytest.approx(1e12 / (COMPUTE["product"].likely * 989.4e12))
    moved = rates.estimate(op("aten.add", 1e6, 1e9))
    assert moved.bound == "memory"
    assert moved.seconds == pytest.approx(1e9 / (BANDWIDTH.likely * 3.35e12))
    launched = rates.estimate(op("aten.add", 10, 10, calls=100))
    assert launched.bound == "launch"
    assert launched.seconds == pytest.approx(100 * H100.launch_seconds)
    assert rates.estimate(op("aten.view", 0, 0, calls=100)).seconds == 0.0
    for found in (product, moved, launched):
        assert found.low < found.seconds < found.high
    scan = rates.estimate(op("verim.scan_forward", 1e12, 1e6))
    assert scan.seconds == pytest.approx(1e12 / (COMPUTE["kernel"].likely * 67e12))


def test_kinds_of_work() -> None:
    names = ("aten.mm", "verim.attention_forward", "verim.dual_backward", "verim.scan_forward", "aten.mul")
    assert [work_of(name) for name in names] == ["product", "tiled", "tiled", "kernel", "rest"]


def made(size: float) -> Measured:
    """A step whose ops cost what they were told to: mm 5 µs and 0.1 TFLOP/s, add 2 µs and 10 GB/s, 5 beyond 1 MB."""
    flops, moved = 1e6 * size, 3e4 * size
    beyond = max(0.0, moved - 2**20)
    ops = (
        op("aten.mm", 7 * flops, 7 * 100.0, 7, 7 * (5e-6 + flops / 1e11)),
        op("aten.add", 0.0, 3 * moved, 3, 3 * (2e-6 + moved / 1e10 + beyond / 1e10), "backward"),
    )
    return Measured(f"{size}", sum(part.seconds for part in ops), ops)


def test_prices_are_found_again_and_predict_other_steps() -> None:
    rates = fit([made(size) for size in (1, 3, 10, 30, 100, 200)])
    for size in (2, 20, 150, 400):
        step = made(size)
        assert rates.step_seconds(step.ops) == pytest.approx(step.seconds, rel=0.06)
    assert rates.error < 0.1
    assert rates.steps == 6
    found = rates.estimate(made(100).ops[0])
    assert found.bound == "compute" and found.low <= found.seconds <= found.high


def test_an_op_that_was_never_measured_is_priced_by_its_kind() -> None:
    rates = fit([made(size) for size in (1, 10, 100)])
    known, unknown = op("aten.mm", 1e8, 100.0), op("aten.bmm", 1e8, 100.0)
    assert rates.estimate(unknown).seconds == pytest.approx(rates.estimate(known).seconds, rel=0.2)
    assert rates.estimate(op("verim.scan_forward", 1e8, 1e6)).seconds > 0


def test_a_fit_needs_steps() -> None:
    with pytest.raises(InputError, match="at least two"):
        fit([made(1)])


def test_steps_and_prices_survive_json() -> None:
    steps = [made(1), made(10), made(100)]
    rates = fit(steps)
    assert FittedRates.from_json(rates.to_json()) == rates
    again = fit(steps_from_json(steps_to_json(steps)))
    assert again.step_seconds(made(50).ops) == pytest.approx(rates.step_seconds(made(50).ops))


@pytest.mark.parametrize("model", ["transformer", "mamba"])
def test_the_ops_of_a_step_that_did_not_run_are_those_that_do(model: str) -> None:
    imagined, memory = step_of(model_config(model, 16), Workload(2, 16))
    ran = measure(Setting(model, 16, 2, 16), seconds=0.0)
    assert sum(part.flops for part in imagined) == pytest.approx(sum(part.flops for part in ran.ops))
    assert {part.name for part in imagined if part.bytes} >= {part.name for part in ran.ops if part.bytes}
    # A first step, as the imagined one is, makes what later ones find in caches: angles of positions, for one.
    assert sum(part.bytes for part in imagined) == pytest.approx(sum(part.bytes for part in ran.ops), rel=0.1)
    assert sum(part.total_seconds for part in ran.ops) <= ran.seconds * 2
    assert memory.peak_bytes > 0


def test_a_forecast_is_consistent() -> None:
    found = forecast(TINY, Workload(4, 32, "bfloat16"), dataclasses.replace(H100, price_per_hour=2.0))
    step, rate = found.step_seconds, found.tokens_per_second
    assert sum(part.seconds for part in found.ops) == pytest.approx(step.likely)
    assert sum(found.bounds.values()) == pytest.approx(step.likely)
    assert step.low < step.likely < step.high
    assert rate.low < rate.likely < rate.high
    assert rate.likely * step.likely == pytest.approx(4 * 32)
    assert found.dtype == "bfloat16"
    assert found.utilisation == pytest.approx(found.flops / step.likely / 989.4e12)
    assert found.day_kilowatt_hours == pytest.approx(0.7 * 24)
    assert found.day_cost() == 48.0
    assert found.day_tokens == pytest.approx(86400 * rate.likely)
    assert "not back-tested" in found.basis
    assert found.to_json()["ops"][0]["seconds"] == found.by_op()[0].seconds
    unpriced = dataclasses.replace(found, device=H100)
    assert unpriced.day_cost() is None and unpriced.day_cost(0.5) == pytest.approx(0.7 * 24 * 0.5)


def test_more_work_takes_longer_and_a_larger_device_does_not() -> None:
    def seconds(batch: int, name: str) -> float:
        return forecast(TINY, Workload(batch, 32, "bfloat16"), device(name)).step_seconds.likely

    assert seconds(2, "a100") <= seconds(4, "a100") <= seconds(8, "a100")
    assert seconds(64, "h200") <= seconds(64, "h100") <= seconds(64, "a100") <= seconds(64, "t4")


def test_a_step_that_does_not_fit_names_settings_that_do() -> None:
    small = dataclasses.replace(H100, memory_bytes=int(3e5 / MEMORY_SHARE))
    with pytest.raises(InputError, match=r"memory: a step needs .* these fit: (.*;){2}"):
        forecast(TINY, Workload(8, 32), small)


def test_this_machines_prices_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIM_CACHE", str(tmp_path))
    monkeypatch.setattr(
        calibration, "CALIBRATION", (Setting("transformer", 16, 1, 8), Setting("transformer", 16, 2, 8))
    )
    counted: list[int] = []

    def counting(setting: Setting) -> Measured:
        counted.append(setting.batch)
        return made(setting.batch)

    monkeypatch.setattr(calibration, "measure", counting)
    told: list[tuple[int, int]] = []
    first = rates_here(told=lambda done, of: told.append((done, of)))
    assert (counted, told) == ([1, 2], [(0, 2), (1, 2)])
    assert rates_here() == first and len(counted) == 2
    rates_here(refresh=True)
    assert len(counted) == 4
    next(tmp_path.glob("prices-*.json")).write_text("{")
    assert rates_here() == first and len(counted) == 6
