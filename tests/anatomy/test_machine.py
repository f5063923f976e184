"""The machine's card: plain values, and what torch and the system say."""

import json
import math
import os
import posixpath

import pytest
import torch

from verim.anatomy import machine, machine_card
from verim.anatomy.machine import usable_cores, version_of


def test_the_card_is_json_and_names_what_matters() -> None:
    card = machine_card()
    assert json.loads(json.dumps(card)) == card
    assert card["processor"]
    assert 1 <= card["cores"] <= (os.cpu_count() or 1)
    assert card["threads"] == torch.get_num_threads()
    assert card["torch"] == torch.__version__
    assert card["blas"]
    assert card["memory_bytes"] is None or card["memory_bytes"] > 100e6
    assert len(card["cuda"]) == torch.cuda.device_count()


def test_cores_are_those_of_this_process() -> None:
    if not hasattr(os, "sched_setaffinity"):
        assert usable_cores() == os.cpu_count()
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("quota", "files"),
    [
        (None, {}),
        (None, {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}),
        (1.5, {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}),
        (  # the group of a service, and a wider limit around it
            0.5,
            {
                "/proc/self/cgroup": "0::/system.slice/a:b\n",
                "/sys/fs/cgroup/system.slice/cpu.max": "400000 100000\n",
                "/sys/fs/cgroup/system.slice/a:b/cpu.max": "50000 100000\n",
            },
        ),
        (  # version 1 in a container that sees the host's path
            2.0,
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/docker/1f\n3:cpuset:/\n0::/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
        ),
        (
            None,
            {
                "/proc/self/cgroup": "5:cpuacct,cpu:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
    ],
)
def test_the_containers_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, files: dict[str, str]
) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: files.get(posixpath.normpath(path), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_cores() == (8 if quota is None else math.ceil(quota))
    assert machine_card()["cpu_quota"] == quota
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert usable_cores() == 1


def test_versions_of_what_is_and_what_is_not_installed() -> None:
    assert version_of("numba")
    assert version_of("a-package-that-nobody-has") is None
