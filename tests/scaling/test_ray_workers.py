"""A study's runs on a Ray cluster: a real one, of this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from verim.data.tokens import save_tokens
from verim.errors import InputError
from verim.runs import RunDirectory
from verim.scaling.ladder import RunSpec
from verim.scaling.ray import RayWorkers
from verim.scaling.workers import CORPUS_FILE, Job, LocalWorkers

pytest.importorskip("ray")

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # whether or not this machine has a token
IN_A_PROCESS = """
import os, signal, sys, time
from pathlib import Path
from test_ray_workers import jobs, training_process
from verim.runs import RunDirectory
from verim.scaling.ray import RayWorkers

folder = Path(sys.argv[2])
with RayWorkers(sys.argv[1], folder) as workers:
    assert (workers.processes, workers.threads) == (2, 2), (workers.processes, workers.threads)
    futures = [workers.train(job) for job in jobs(folder)]
    run = RunDirectory(jobs(folder)[0].directory)
    while not futures[0].done() and len(run.metrics()) < 3:
        time.sleep(0.01)
    os.kill(training_process(run), signal.SIGKILL)
    told = []
    while not all(future.done() for future in futures):
        told += workers.news()
        time.sleep(0.05)
    results = [workers.result(future) for future in futures]
    assert {name for name, _ in told} <= {job.spec.id for job in jobs(folder)} and told, told
    print(*(result["bits_per_byte"] for result in results))
"""


def jobs(folder: Path) -> list[Job]:
    specs = [RunSpec("transformer", 16, 1e10, 200_000.0, seed, evaluations=1, expected_seconds=1.0) for seed in (0, 1)]
    return [Job(folder / "runs" / spec.id, spec, threads=1) for spec in specs]


def training_process(run: RunDirectory) -> int:
    """The number of the process that holds the run's lock."""
    lock = str(run.path / ".lock")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = [os.readlink(descriptor) for descriptor in (process / "fd").iterdir()]
        except OSError:
            continue
        if lock in held:
            return int(process.name)
    raise AssertionError("nobody trains the run")


def studied(folder: Path) -> Path:
    tokens = torch.randint(97, 107, (200_000,), generator=torch.Generator().manual_seed(0)).byte()
    folder.mkdir()
    save_tokens(folder / CORPUS_FILE, tokens[:-20_000], tokens[-20_000:])
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of one machine with two CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus", "2"]
    command += ["--node-ip-address", "127.0.0.1", "--port", address.split(":")[1], "--include-dashboard", "false"]
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as head:
        try:
            assert head.stdout is not None
            said = ""
            while "Ray runtime started" not in said:
                line = head.stdout.readline()
                said += line
                assert line, said
            yield address
        finally:
            head.terminate()
            head.communicate(timeout=60)


@pytest.mark.slow
def test_runs_on_a_cluster_end_as_here_also_when_one_is_killed(cluster: str, tmp_path: Path) -> None:
    here, there = studied(tmp_path / "here"), studied(tmp_path / "there")
    with LocalWorkers(2) as workers:
        expected = [workers.result(future)["bits_per_byte"] for future in map(workers.train, jobs(here))]
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, cluster, str(there)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [float(value) for value in done.stdout.splitlines()[-1].split()] == expected
    assert RunDirectory(jobs(there)[0].directory).finished


def test_no_cluster(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"ray: no cluster answers at '{address}' .*start one with `ray start"):
            RayWorkers(address, tmp_path)
