"""What the doctor finds: for every lack the text says what it costs or what to do."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from verim.anatomy import Finding, examine, health

WELL: dict[str, Any] = {
    "cores": 8,
    "threads": 8,
    "cpu_quota": None,
    "blas": "mkl",
    "cpu_capability": "AVX2",
    "numba": "0.65",
    "cuda": [{"name": "H100", "memory_bytes": 80e9, "capability": "9.0"}],
    "triton": "3.5",
    "libc": "glibc 2.39",
    "memory_bytes": 32e9,
    "memory_available_bytes": 30e9,
}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def plenty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: Usage(1e12, 0, 1e12))


def found(subject: str, directory: Path, **lacks: Any) -> Finding:
    (finding,) = [each for each in examine({**WELL, **lacks}, directory) if each.subject == subject]
    return finding


def test_a_well_equipped_machine_has_no_complaint(tmp_path: Path) -> None:
    findings = examine(WELL, tmp_path)
    assert {finding.status for finding in findings} == {"fine"}
    assert "threading layer" in found("Numba", tmp_path).text


@pytest.mark.parametrize(
    ("subject", "lacks", "status", "text"),
    [
        ("threads", {"threads": 1}, "problem", "1 of 8 cores: call torch.set_num_threads"),
        ("threads", {"threads": 16}, "problem", "set OMP_NUM_THREADS=8"),
        ("quota", {"cpu_quota": 1.5}, "problem", "1.5 cores' worth of time: set OMP_NUM_THREADS=1"),
        ("BLAS", {"blas": None}, "problem", "install"),
        ("vectors", {"cpu_capability": "DEFAULT"}, "absent", "slow"),
        ("Numba", {"numba": None}, "problem", "pip install numba"),
        ("GPU", {"cuda": []}, "absent", "on the CPU"),
        ("Triton", {"triton": None}, "problem", "CUDA builds"),
        ("Triton", {"triton": None, "cuda": []}, "absent", "CUDA builds"),
        ("allocator", {"libc": None}, "absent", "page faults"),
        ("memory", {"memory_available_bytes": 1e9}, "problem", "1.0 GB free of 32.0 GB: a study needs"),
        ("memory", {"memory_available_bytes": None, "memory_bytes": None}, "fine", "? free of ?"),
    ],
)
def test_a_lack_is_named_with_what_it_costs(
    tmp_path: Path, subject: str, lacks: dict[str, Any], status: str, text: str
) -> None:
    finding = found(subject, tmp_path, **lacks)
    assert finding.status == status
    assert text in finding.text


def test_the_variable_that_limits_threads_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert found("threads", tmp_path, threads=2).text.endswith("OMP_NUM_THREADS is 2: unset it to use all")


def test_a_driver_without_a_cuda_build_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert "install a CUDA build of torch" in found("GPU", tmp_path, cuda=[]).text


def test_a_full_disk_is_a_problem_also_for_a_directory_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: Usage(1e12, 0, 1e8))
    finding = found("disk", tmp_path / "studies" / "one")
    assert finding.status == "problem"
    assert finding.text.startswith(f"0.1 GB free in {tmp_path}: free some")


def test_places_that_cannot_be_written_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.os, "access", lambda path, mode: False)
    assert "--out" in found("disk", tmp_path).text
    assert "VERIM_CACHE" in found("cache", tmp_path).text
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("VERIM_CACHE", str(tmp_path / "file"))
    assert "VERIM_CACHE" in found("cache", tmp_path).text
