"""The exact command that starts a training on many ranks: for torchrun, SLURM and Ray."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields

from verim.errors import InputError
from verim.train.parallel.config import ParallelConfig


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines with `ranks_per_node` processes each: one for each GPU, or with `gpus` False for some cores.

    - `hosts`: addresses of the machines; the first is where the ranks meet, at `port`. SLURM knows its own.
    - `restarts`: how often all ranks start again, from the last whole checkpoint, when one has died.
    - `hours`, `partition`, `account`: what is asked of SLURM.
    - `cores`: of each process.
    """

    nodes: int = 1
    ranks_per_node: int = 1
    gpus: bool = True
    hosts: tuple[str, ...] = ()
    port: int = 29500
    restarts: int = 3
    hours: float = 24.0
    partition: str = ""
    account: str = ""
    cores: int = 8

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("ranks_per_node", 1), ("restarts", 0), ("cores", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not 0 < self.port < 2**16:
            raise InputError(f"port: got {self.port}, expected 1 to 65535")
        if not 0 < self.hours < math.inf:
            raise InputError(f"hours: got {self.hours}, expected a positive number")
        if self.hosts and len(self.hosts) != self.nodes:
            raise InputError(f"hosts: got {len(self.hosts)} addresses for {self.nodes} nodes; expected {self.nodes}")


def torchrun(config: ParallelConfig, cluster: Cluster, arguments: Sequence[str]) -> str:
    """The command to give on every node; `arguments` are those of `verim` ("train", the data, ...)."""
    if cluster.nodes == 1:
        return _torchrun(config, cluster, arguments, "1", ["--standalone"])
    endpoint = _where_they_meet(cluster, "torchrun")
    return _torchrun(config, cluster, arguments, str(cluster.nodes), _rendezvous(shlex.quote(endpoint), "verim"))


def slurm(config: ParallelConfig, cluster: Cluster, arguments: Sequence[str]) -> str:
    """A script for `sbatch`: one task a node, each a torchrun; SLURM says which node comes first."""
    minutes = math.ceil(cluster.hours * 60)
    asked = {
        "job-name": "verim",
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": cluster.ranks_per_node if cluster.gpus else None,
        "cpus-per-task": cluster.cores * cluster.ranks_per_node,
        "time": f"{minutes // 60}:{minutes % 60:02d}:00",
        "partition": cluster.partition or None,
        "account": cluster.account or None,
        "output": "verim-%j.log",
        "requeue": "",  # a node that fails takes the job back to the queue: it goes on from its last checkpoint
    }
    lines = ["#!/bin/bash"]
    given = {name: value for name, value in asked.items() if value is not None}
    lines += [f"#SBATCH --{name}" if value == "" else f"#SBATCH --{name}={value}" for name, value in given.items()]
    command = _torchrun(
        config, cluster, arguments, '"$SLURM_NNODES"', _rendezvous(f'"$first:{cluster.port}"', '"$SLURM_JOB_ID"')
    )
    lines += [
        "set -euo pipefail",
        'read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f"export OMP_NUM_THREADS={cluster.cores}",
        f"srun --kill-on-bad-exit=1 {command}",
    ]
    return "\n".join(lines)


def ray(config: ParallelConfig, cluster: Cluster, arguments: Sequence[str], address: str) -> str:
    """Commands that submit a torchrun to each node of the Ray cluster whose jobs are taken at `address`."""
    jobs = []
    for host in cluster.hosts or ("",):
        if cluster.nodes == 1:
            command = _torchrun(config, cluster, arguments, "1", ["--standalone"])
        else:
            endpoint = _where_they_meet(cluster, "ray")
            command = _torchrun(
                config, cluster, arguments, str(cluster.nodes), _rendezvous(shlex.quote(endpoint), "verim")
            )
        gpus = ["--entrypoint-num-gpus", str(cluster.ranks_per_node)] if cluster.gpus else []
        cpus = [] if cluster.gpus else ["--entrypoint-num-cpus", str(cluster.cores * cluster.ranks_per_node)]
        there = ["--entrypoint-resources", shlex.quote(json.dumps({f"node:{host}": 0.01}))] if host else []
        submit = ["ray", "job", "submit", "--address", shlex.quote(address), "--no-wait", *gpus, *cpus, *there]
        jobs.append(" ".join([*submit, "--", command]))
    return "\n".join(jobs)


LAUNCHERS = ("torchrun", "slurm", "ray")


def launch_text(
    launcher: str, config: ParallelConfig, cluster: Cluster, arguments: Sequence[str], address: str = ""
) -> str:
    """What to type, or with "slurm" to save and to give to sbatch.

    Raises `InputError` for a launcher that is not known, where the configuration does not take as many ranks as the
    cluster has, and where tensor ranks would lie on several machines.
    """
    if launcher not in LAUNCHERS:
        raise InputError(f"launcher: got {launcher!r}, expected one of {', '.join(LAUNCHERS)}")
    if not arguments:
        raise InputError("command: got nothing, expected what verim is to do on the ranks: train DATA --minutes 30")
    ranks = cluster.nodes * cluster.ranks_per_node
    config.check_ranks(ranks)
    if cluster.ranks_per_node % config.tensor:
        raise InputError(
            f"tensor: got {config.tensor} for {cluster.ranks_per_node} ranks a node; expected a divisor of "
            f"{cluster.ranks_per_node}: tensor ranks exchange in every layer, too much for the network between machines"
        )
    if launcher == "ray":
        return ray(config, cluster, arguments, address or "http://127.0.0.1:8265")
    return slurm(config, cluster, arguments) if launcher == "slurm" else torchrun(config, cluster, arguments)


def parallel_options(config: ParallelConfig) -> list[str]:
    """The options of `verim train` that say `config`: those fields that are not as they are by default."""
    changed = [field for field in fields(config) if getattr(config, field.name) != field.default]
    options = []
    for field in changed:
        name, value = f"--parallel.{field.name.replace('_', '-')}", getattr(config, field.name)
        options += [name] if value is True else [name, str(value)]
    return options


def _torchrun(
    config: ParallelConfig, cluster: Cluster, arguments: Sequence[str], nodes: str, meeting: Sequence[str]
) -> str:
    """Its words; `nodes` and `meeting` are ready for the shell."""
    verim = [shlex.quote(word) for word in (*arguments, *parallel_options(config))]
    ranks = ["--nnodes", nodes, "--nproc-per-node", str(cluster.ranks_per_node)]
    return " ".join(["torchrun", *ranks, *meeting, "--max-restarts", str(cluster.restarts), "-m", "verim", *verim])


def _rendezvous(endpoint: str, name: str) -> list[str]:
    return ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", name]


def _where_they_meet(cluster: Cluster, launcher: str) -> str:
    if not cluster.hosts:
        raise InputError(
            f"hosts: got none for {cluster.nodes} nodes with {launcher}; expected the address of each, the first of "
            "which is where the ranks meet"
        )
    return f"{cluster.hosts[0]}:{cluster.port}"
