"""The table of devices holds together, and agrees with what its data sheets are known to say."""

import dataclasses
import itertools
import math

import pytest

from verim.anatomy import devices as module
from verim.anatomy.devices import Device, device, devices, this_machine
from verim.anatomy.devices.here import _in_table
from verim.errors import InputError

NAMES = devices()

UNITS = {
    "a100-80gb": (64, 1024, 1.410, 1.410),
    "a100-40gb": (64, 1024, 1.410, 1.410),
    "h100-sxm": (128, 2048, 1.980, 1.830),
    "h100-pcie": (128, 2048, 1.755, 1.620),
    "h200": (128, 2048, 1.980, 1.830),
    "b200": (128, 4096, 1.980, 1.860),
    "mi300x": (128, 1024, 2.100, 2.100),
    "l40s": (128, 512, 2.520, 2.520),
    "l4": (128, 512, 2.040, 2.040),
    "a10": (128, 512, 1.695, 1.695),
    "t4": (64, 512, 1.590, 1.590),
    "v100": (64, 512, 1.530, 1.530),
    "rtx5090": (128, 256, 2.407, 2.407),
    "rtx4090": (128, 256, 2.520, 2.520),
    "rtx3090": (128, 256, 1.695, 1.695),
}
"""Multiply-adds a clock and multiprocessor in float32 and in 16-bit products, and the clocks in GHz that go with them.
MI300X issues two float32 multiply-adds at once, so counts 128 for its 64 lanes."""


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_units_times_clock(name: str) -> None:
    row = device(name)
    vector, matrix, clock, matrix_clock = UNITS[name]
    assert row.peak("float32") == pytest.approx(row.multiprocessors * vector * 2 * clock * 1e9, rel=0.02)
    assert row.peak("float16") == pytest.approx(row.multiprocessors * matrix * 2 * matrix_clock * 1e9, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_types_of_half_the_bits_are_at_least_as_fast(name: str) -> None:
    """By a factor that units can have: a sparse figure beside a dense one would show as twice it."""
    peaks = device(name).peaks
    order = [dtype for dtype in ("float32", "tf32", "bfloat16", "float8") if dtype in peaks]
    for slower, faster in itertools.pairwise(order):
        assert 1 <= peaks[faster] / peaks[slower] <= 16
    for slower, faster in (("tf32", "bfloat16"), ("bfloat16", "float8")):
        if slower in peaks and faster in peaks:
            assert peaks[faster] / peaks[slower] == pytest.approx(2, rel=0.03)
    assert "bfloat16" not in peaks or peaks["bfloat16"] == peaks["float16"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_plausible_as_a_whole(name: str) -> None:
    row = device(name)
    assert len(row.source) > 20
    assert row.price_per_hour is None
    assert row.multiprocessor is not None
    assert row.multiprocessor.warps * row.multiprocessor.warp == row.multiprocessor.threads
    assert row.multiprocessor.block_shared_bytes <= row.multiprocessor.shared_bytes
    assert row.l2_bytes is None or row.l2_bytes < row.memory_bytes / 100
    assert row.pcie is not None
    assert row.network < row.pcie < (row.link or row.pcie * 1.1) < row.memory_bandwidth
    assert row.ridge("float32") < row.ridge("float16")


def test_goldens() -> None:
    a100, h100 = device("a100"), device("h100")
    assert (a100.multiprocessors, a100.peak("bfloat16"), a100.peak("float32")) == (108, 312e12, 19.5e12)
    assert (a100.memory_bytes, a100.memory_bandwidth) == (80e9, 2.039e12)
    assert (h100.multiprocessors, h100.memory_bytes, h100.memory_bandwidth) == (132, 80e9, 3.35e12)
    assert h100.peak("bfloat16") == pytest.approx(989e12, rel=1e-3)
    assert device("h200").peaks == h100.peaks
    assert (device("h200").memory_bytes, device("h200").memory_bandwidth) == (141e9, 4.8e12)
    assert device("mi300x").peak("bfloat16") == pytest.approx(1307e12, rel=1e-3)
    assert device("rtx4090").peak("bfloat16") == 165.2e12
    assert a100.ridge("bfloat16") == pytest.approx(153, abs=0.1)


def test_bandwidth_rises_with_the_generation() -> None:
    order = ("t4", "v100", "a100-40gb", "a100-80gb", "h100-sxm", "h200", "mi300x", "b200")
    rates = [device(name).memory_bandwidth for name in order]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("given", "meant"), [("H100", "h100-sxm"), ("RTX 4090", "rtx4090"), ("A100_40GB", "a100-40gb")]
)
def test_names_in_any_way_of_writing(given: str, meant: str) -> None:
    assert device(given) is device(meant)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'h1000'.*this, a100-80gb.*rtx3090"):
        device("h1000")


def test_a_type_without_units_is_computed_as_float32() -> None:
    assert device("t4").peak("bfloat16") == device("t4").peak("float32")


@pytest.mark.parametrize(
    ("field", "value"),
    [("source", " "), ("peaks", {"bfloat16": 1.0}), ("memory_bandwidth", 0.0), ("link", -1.0), ("watts", math.inf)],
)
def test_a_row_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        dataclasses.replace(device("a100"), **{field: value})


def test_this_machine_is_measured() -> None:
    here = this_machine()
    assert here.source.startswith("measured")
    assert here.peak("float32") > 1e9
    assert here.memory_bandwidth > 1e8
    assert 1e-8 < here.launch_seconds < 1e-2
    assert module.device("this").name == here.name


def test_a_cuda_device_finds_its_row() -> None:
    def found(name: str, multiprocessors: int) -> str | None:
        row: Device | None = _in_table(name, multiprocessors)
        return row and row.name

    assert found("NVIDIA H100 80GB HBM3", 132) == "h100-sxm"
    assert found("NVIDIA H100 PCIe", 114) == "h100-pcie"
    assert found("NVIDIA GeForce RTX 4090", 128) == "rtx4090"
    assert found("Tesla T4", 40) == "t4"
    assert found("NVIDIA GeForce GTX 1080", 20) is None
