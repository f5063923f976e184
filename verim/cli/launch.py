"""`verim launch`: the exact command that starts a training on many ranks."""

import shlex
from dataclasses import dataclass, field
from typing import Literal

import tyro

from verim.train.parallel import ParallelConfig
from verim.train.parallel.launch import Cluster, launch_text


@dataclass(frozen=True)
class LaunchCommand:
    """Print the command that starts a training on many ranks; it starts nothing.

    verim launch "train DATA --minutes 30" --cluster.nodes 2 --cluster.ranks-per-node 8 --parallel.shard 16 --on slurm
    """

    command: tyro.conf.Positional[str]
    """What verim is to do on the ranks, as one text: "train DATA --minutes 30"."""
    on: Literal["torchrun", "slurm", "ray"] = "torchrun"
    """What starts processes there. For slurm it is a script: save it as job.sh, then sbatch job.sh."""
    cluster: Cluster = field(default_factory=Cluster)
    """The machines."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """What the ranks share, and how."""
    ray_address: str = "http://127.0.0.1:8265"
    """Where Ray's head takes jobs."""

    def run(self) -> None:
        print(launch_text(self.on, self.parallel, self.cluster, shlex.split(self.command), self.ray_address))
