"""The ranks as a grid: torch's DeviceMesh with one dimension for each kind of parallelism."""

import os
from dataclasses import dataclass

import torch
from torch import distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from verim.errors import InputError
from verim.train.parallel.config import DIMENSIONS, ParallelConfig


@dataclass(frozen=True)
class Mesh:
    """- `grid`: the dimensions of `ParallelConfig`, those of length 1 too.
    - `batch`: over all ranks with parts of one batch (data, expert, context, shard), whose gradients are added.
    - `sharing`: two dimensions, copies (data, expert, context) and shard: what FSDP divides over.
    """

    grid: DeviceMesh
    batch: DeviceMesh
    sharing: DeviceMesh

    def group(self, name: str) -> ProcessGroup:
        """The process group of this rank along the dimension `name` of the grid, or "batch"."""
        return (self.batch if name == "batch" else self.grid[name]).get_group()

    def place(self, name: str) -> int:
        """Where this rank stands along the dimension `name` of the grid, or "batch"."""
        return (self.batch if name == "batch" else self.grid[name]).get_local_rank()


def build_mesh(config: ParallelConfig, device: str) -> Mesh:
    """The mesh of all ranks, for tensors on `device` ("cpu", "cuda").

    Raises `InputError` where there is no process group, or one of another size.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise InputError(
            f"{config.ranks} ranks need a process group: start the processes with torchrun and call "
            "torch.distributed.init_process_group first (`verim launch` prints the command)"
        )
    if distributed.get_world_size() != config.ranks:
        raise InputError(f"the configuration takes {config.ranks} ranks, {distributed.get_world_size()} were started")
    copies = config.data * config.expert * config.context

    def mesh(**sizes: int) -> DeviceMesh:
        return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

    grid = mesh(**{name: getattr(config, name) for name in DIMENSIONS})
    batch = mesh(pipeline=config.pipeline, batch=copies * config.shard, tensor=config.tensor)["batch"]
    sharing = mesh(pipeline=config.pipeline, copies=copies, shard=config.shard, tensor=config.tensor)
    return Mesh(grid, batch, sharing["copies", "shard"])


def local_device() -> torch.device:
    """The device of this process: the CUDA device of its local rank, as torchrun numbers it, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
