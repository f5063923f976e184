"""A rank that dies: the others stop and say so; torchrun starts all again, from the last checkpoint."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from verim.runtime.tensors import read_tensors
from verim.train.parallel.start import store_of_this_life

SCRIPT = Path(__file__).with_name("mortal_rank.py")


def train(folder: Path, restarts: int, fatal: int) -> subprocess.CompletedProcess[str]:
    """Six steps on two ranks, of which one dies at step `fatal`."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return subprocess.run(
        [sys.executable, "-m", *torchrun, str(SCRIPT), str(folder), "6", str(fatal)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_restarted_ranks_go_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    for name, fatal in (("died", 3), ("lived", -1)):
        (tmp_path / name).mkdir()
        done = train(tmp_path / name, restarts=1, fatal=fatal)
        assert done.returncode == 0, done.stderr
        assert ("rank 1, life 1: from step 2" in done.stdout) == (name == "died"), done.stdout
    died, lived = (read_tensors(tmp_path / name / "final")[0] for name in ("died", "lived"))
    for key, weight in lived.items():
        assert torch.equal(died[key], weight), key


@pytest.mark.slow
def test_the_rank_that_is_left_says_why_it_stops(tmp_path: Path) -> None:
    """Without a launcher that ends it first: it must end by itself, soon, with the reason."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), "6", "3"],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said, _ = ranks[0].communicate(timeout=200)
        assert ranks[1].wait(timeout=10) == 17
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[0].returncode == 2
    assert "rank 0: another rank has died or does not answer" in said
    assert "starts all again from the last whole checkpoint" in said


def test_a_life_does_not_hear_of_those_before() -> None:
    """Three ranks meet over a store that still holds what ranks of earlier lives wrote, whoever comes first."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def meet(rank: int, life: int) -> None:
        time.sleep(0.3 * ((rank + life) % 3))
        own = TCPStore("127.0.0.1", store.port, is_master=False)
        of_life = store_of_this_life(own, rank, 3)
        of_life.set(f"address {rank}", f"{life}.{rank}")
        assert [of_life.get(f"address {other}").decode() for other in range(3)] == [f"{life}.{i}" for i in range(3)]

    for life in range(3):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(meet, range(3), [life] * 3))
