"""The scan over ranks: four processes and pairs of them, equal to the local op, whatever each of them holds."""

import ast
from pathlib import Path

import pytest
import torch
from spawned import Results, require, run_on_ranks
from torch import distributed

from verim.errors import InputError
from verim.ops.distributed import distributed_linear_recurrence, distributed_selective_scan, distributed_wkv

WORLD = 4
SCRIPT = Path(__file__).with_name("distributed_ranks.py")
SUBJECTS = ("linear recurrence", "reversed", "complex", "selective scan", "wkv", "state space dual", "wkv7")
NAMES = [f"{subject} in {dtype}" for subject in SUBJECTS for dtype in ("float64", "float32")] + [
    call.args[0].value
    for call in ast.walk(ast.parse(SCRIPT.read_text()))
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What came out of each check on each rank; the processes start once for all checks."""
    return run_on_ranks(SCRIPT, WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", NAMES)
def test_on_every_rank(name: str, results: Results) -> None:
    require(name, results)


def test_every_check_is_asked_for(results: Results) -> None:
    assert set(results[0]) <= set(NAMES)


@pytest.mark.parametrize(
    "op", [distributed_linear_recurrence, distributed_selective_scan, distributed_wkv], ids=lambda op: op.__name__
)
def test_without_a_process_group(op) -> None:
    assert not distributed.is_initialized()
    tensors = [torch.ones(1, 2, 3)] * 2 + [torch.ones(3)] * 3
    with pytest.raises(InputError, match=f"{op.__name__}: there is no process group: start the processes with torchr"):
        op(*tensors)
