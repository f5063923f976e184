"""The scan over ranks: four processes and pairs of them, equal to the local op, whatever each of them holds."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed

from verim.errors import InputError
from verim.ops.distributed import distributed_linear_recurrence, distributed_selective_scan, distributed_wkv

WORLD = 4
SCRIPT = Path(__file__).with_name("distributed_ranks.py")
SUBJECTS = ("linear recurrence", "reversed", "complex", "selective scan", "wkv")
NAMES = [f"{subject} in {dtype}" for subject in SUBJECTS for dtype in ("float64", "float32")] + [
    call.args[0].value
    for call in ast.walk(ast.parse(SCRIPT.read_text()))
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    """What came out of each check on each rank; the processes start once for all checks."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(WORLD), str(folder)], env=environment)
        for rank in range(WORLD)
    ]
    last = time.monotonic() + 180
    try:
        while any(process.poll() is None for process in ranks):
            assert all(not process.returncode for process in ranks), "a rank did not start: see its standard error"
            assert time.monotonic() < last, "the ranks wait for each other"
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("name", NAMES)
def test_on_every_rank(name: str, results: list[dict[str, str | None]]) -> None:
    for rank, came_out in enumerate(results):
        assert name in came_out, f"rank {rank} did not get here; before: {list(came_out.values())[-1:]}"
        assert came_out[name] is None, f"rank {rank}: {came_out[name]}"


def test_every_check_is_asked_for(results: list[dict[str, str | None]]) -> None:
    assert set(results[0]) <= set(NAMES)


@pytest.mark.parametrize(
    "op", [distributed_linear_recurrence, distributed_selective_scan, distributed_wkv], ids=lambda op: op.__name__
)
def test_without_a_process_group(op) -> None:
    assert not distributed.is_initialized()
    tensors = [torch.ones(1, 2, 3)] * 2 + [torch.ones(3)] * 3
    with pytest.raises(InputError, match=f"{op.__name__}: there is no process group: start the processes with torchr"):
        op(*tensors)
