"""The commands that start many ranks: exact, quoted, and refused where they could not work."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from verim.cli.main import main
from verim.errors import InputError
from verim.train.parallel import ParallelConfig
from verim.train.parallel.launch import Cluster, launch_text, parallel_options

WORK = ["train", "my data", "--minutes", "30"]
TWO_NODES = Cluster(nodes=2, ranks_per_node=8, hosts=("10.0.0.1", "10.0.0.2"), partition="gpu")
SHARED = ParallelConfig(shard=8, tensor=2, sequence_parallel=True)


def test_torchrun_on_one_machine() -> None:
    text = launch_text("torchrun", ParallelConfig(data=4), Cluster(ranks_per_node=4, restarts=1), WORK)
    assert text == (
        "torchrun --nnodes 1 --nproc-per-node 4 --standalone --max-restarts 1 -m verim train 'my data' --minutes 30 "
        "--parallel.data 4"
    )


def test_torchrun_on_several_machines_meets_on_the_first() -> None:
    words = shlex.split(launch_text("torchrun", SHARED, TWO_NODES, WORK))
    assert words[words.index("--rdzv-endpoint") + 1] == "10.0.0.1:29500"
    assert words[-5:] == ["--parallel.shard", "8", "--parallel.tensor", "2", "--parallel.sequence-parallel"]


def test_ray_pins_a_job_to_each_machine() -> None:
    jobs = launch_text("ray", SHARED, TWO_NODES, WORK, "http://head:8265").splitlines()
    assert len(jobs) == 2
    for job, host in zip(jobs, TWO_NODES.hosts, strict=True):
        words = shlex.split(job)
        assert words[:6] == ["ray", "job", "submit", "--address", "http://head:8265", "--no-wait"]
        assert words[words.index("--entrypoint-resources") + 1] == f'{{"node:{host}": 0.01}}'
        assert words[words.index("--") + 1] == "torchrun"


def test_slurm_script_runs(tmp_path: Path) -> None:
    """With stand-ins for what SLURM brings, the script starts torchrun with the words that torchrun is to get."""
    stand_ins = {"scontrol": "echo node7; echo node8", "srun": 'shift; exec "$@"', "torchrun": 'printf "%s\\n" "$@"'}
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(launch_text("slurm", SHARED, TWO_NODES, WORK))
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "41",
    }
    said = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True).stdout
    words = said.splitlines()
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:29500"
    assert words[words.index("--nnodes") + 1] == "2"
    assert words[words.index("--rdzv-id") + 1] == "41"
    assert words[words.index("-m") : words.index("-m") + 4] == ["-m", "verim", "train", "my data"]
    head = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --gpus-per-node=8" in head and "#SBATCH --partition=gpu" in head and "#SBATCH --requeue" in head


@pytest.mark.parametrize(
    ("launcher", "config", "cluster", "message"),
    [
        ("mpirun", SHARED, TWO_NODES, "launcher: got 'mpirun', expected one of torchrun, slurm, ray"),
        ("torchrun", ParallelConfig(data=3), TWO_NODES, "data 3: 3 ranks, but 16 were given; set data to 16"),
        ("torchrun", SHARED, Cluster(nodes=2, ranks_per_node=8), "hosts: got none for 2 nodes"),
        ("slurm", ParallelConfig(tensor=16), TWO_NODES, "tensor: got 16 for 8 ranks a node; expected a divisor of 8"),
    ],
)
def test_what_cannot_be_launched(launcher: str, config: ParallelConfig, cluster: Cluster, message: str) -> None:
    with pytest.raises(InputError, match=message):
        launch_text(launcher, config, cluster, WORK)


def test_impossible_clusters() -> None:
    with pytest.raises(InputError, match="hosts: got 1 addresses for 2 nodes"):
        Cluster(nodes=2, hosts=("a",))
    with pytest.raises(InputError, match="port: got 0"):
        Cluster(port=0)
    with pytest.raises(InputError, match="command: got nothing"):
        launch_text("torchrun", ParallelConfig(), Cluster(), [])


def test_options_say_what_is_not_as_by_default() -> None:
    assert parallel_options(ParallelConfig()) == []
    assert parallel_options(ParallelConfig(offload=True, zero=2)) == ["--parallel.zero", "2", "--parallel.offload"]


def test_the_verb_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cluster.ranks-per-node", "2", "--parallel.data", "2"]
    with pytest.raises(SystemExit) as leaving:
        main(["launch", "train data --minutes 1", *options])
    assert leaving.value.code == 0
    assert capsys.readouterr().out.endswith("-m verim train data --minutes 1 --parallel.data 2\n")
