"""The calibration: plausible figures, quickly; kept; measured again where what was kept is damaged."""

import json
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

from verim.anatomy import Calibration, calibrate, calibration

FIGURES = Calibration(1, 1e10, 1e10, 1e11, 1e11, 1e10, 1e10, 1e-6, 3.0)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A cache of its own, and a measurement that only counts how often it was taken."""
    counter: list[int] = []

    def count() -> Calibration:
        counter.append(1)
        return replace(FIGURES, seconds=float(len(counter)))

    monkeypatch.setenv("VERIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_measure", count)
    return counter


def kept_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").glob("calibration-*.json")
    return path


def test_the_figures_are_plausible_and_take_less_than_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERIM_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    figures = calibrate()
    assert torch.get_num_threads() == threads == figures.threads
    assert all(value > 0 for value in astuple(figures))
    assert figures.seconds < 10
    assert 1e8 < figures.copy_one_thread < 1e12
    assert 1e9 < figures.matmul_float32_one_thread < 1e13
    assert 1e7 < figures.matmul_bfloat16_one_thread < 1e14
    assert 1e-7 < figures.launch_seconds < 1e-3
    assert calibrate() == figures


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with calibration._threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_is_measured_once_and_again_when_asked(measured: list[int]) -> None:
    assert [calibrate().seconds, calibrate().seconds, calibrate(refresh=True).seconds] == [1.0, 1.0, 2.0]
    assert calibrate().seconds == 2.0


def test_another_number_of_threads_is_another_calibration(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    calibrate()
    assert len(measured) == 2


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"identity": {}}', "missing", "zero", "text", "extra", "elsewhere"]
)
def test_a_damaged_file_is_measured_again_and_mended(measured: list[int], tmp_path: Path, damage: str) -> None:
    calibrate()
    path = kept_file(tmp_path)
    value = json.loads(path.read_text())
    if damage == "missing":
        del value["calibration"]["launch_seconds"]
    elif damage == "zero":
        value["calibration"]["launch_seconds"] = 0
    elif damage == "text":
        value["calibration"]["launch_seconds"] = "fast"
    elif damage == "extra":
        value["calibration"]["another"] = 1.0
    elif damage == "elsewhere":
        value["identity"]["processor"] = "another"
    path.write_text(json.dumps(value) if damage.isalpha() and damage != "null" else damage)
    assert calibrate().seconds == 2.0
    assert calibrate().seconds == 2.0


def test_without_a_writable_cache_it_measures_every_time(
    measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("VERIM_CACHE", str(tmp_path / "file"))
    assert [calibrate().seconds, calibrate().seconds] == [1.0, 2.0]


def test_slow_data_types_are_measured_on_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def seconds(size: int, dtype: torch.dtype, budget_seconds: float = 0.3) -> float:
        sizes.append(size)
        return size**3 * (1e-9 if dtype == torch.bfloat16 else 1e-12)

    monkeypatch.setattr(calibration, "_matmul_seconds", seconds)
    assert calibration._matmul_peak(torch.float32) == pytest.approx(2e12)
    assert calibration._matmul_peak(torch.bfloat16) == pytest.approx(2e9)
    assert sizes == [256, 2048, 256, 256]
