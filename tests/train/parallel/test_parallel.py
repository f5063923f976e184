"""Training over two and four processes: as on one, with the traffic and the memory that the formulas say."""

from pathlib import Path

import pytest
import torch
from parallel_ranks import CHECKS, PATTERNS, ROWS, TASK, model_of
from spawned import Results, require, run_on_ranks
from torch import distributed

from verim.errors import InputError
from verim.train.parallel import ParallelConfig, parallelize
from verim.train.parallel.mesh import build_mesh
from verim.train.parallel.plans import PLANS

SCRIPT = Path(__file__).with_name("parallel_ranks.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What came out of each check on each of two ranks; the processes start once for all checks."""
    return run_on_ranks(SCRIPT, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_on_ranks(SCRIPT, 4, tmp_path_factory.mktemp("four"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS[2])
def test_on_two_ranks(name: str, two: Results) -> None:
    require(name, two)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS[4])
def test_on_four_ranks(name: str, four: Results) -> None:
    require(name, four)


def test_one_rank_needs_no_process_group() -> None:
    assert not distributed.is_initialized()
    parallel = parallelize(model_of(*PATTERNS["some"]), ParallelConfig(), ROWS, 12)
    alone = model_of(*PATTERNS["some"])
    loss = parallel.backward(TASK, parallel.share(TASK.batch(0)))
    expected = TASK.loss(alone, TASK.batch(0))
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    torch.testing.assert_close(parallel.clip(0.1), norm)
    for (name, one), other in zip(parallel.module.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_several_ranks_need_one() -> None:
    with pytest.raises(InputError, match="data 2: 2 ranks, but 1 were given"):
        parallelize(model_of(*PATTERNS["some"]), ParallelConfig(data=2), ROWS, 12)
    with pytest.raises(InputError, match="2 ranks need a process group: start the processes with torchrun"):
        build_mesh(ParallelConfig(data=2), "cpu")


def test_every_layer_has_a_plan() -> None:
    layers = {type(layer) for layer in model_of(*PATTERNS["all"]).layers()}
    assert layers == set(PLANS)
