"""ZeRO: ranks that share what is kept (Rajbhandari et al. 2020, arXiv 1910.02054, section 5).

- Stage 3 is torch's FSDP2: weights, gradients and optimiser state are DTensors, divided along their first axis; the
  weights of a block are gathered before its forward pass and again before its backward pass.
- Stage 2 is the same without giving weights up in between: gathered once a step, divided from its end to the next.
- Stage 1 divides the optimiser's state alone, by whole weights: gradients are averaged as in data parallelism, each
  weight is updated by the one rank that has its state, and sent to the others. So it works with any optimiser of
  torch's interface, one that needs whole matrices (Muon) too. It moves 3 (n - 1) / n of the weights' bytes, stage 2
  2 (n - 1) / n, stage 3 3 (n - 1) / n.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from verim.errors import InputError


def shard(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    mesh: DeviceMesh,
    zero: int,
    offload: bool,
    own: Iterable[nn.Parameter] = (),
) -> None:
    """FSDP2 on each of `blocks`, and on `module` for what is left, in place. Weights in `own` are left as they are.

    `mesh` has one dimension, or two: copies, and ranks that share. Raises `InputError` for `offload` without CUDA.
    """
    if offload and mesh.device_type != "cuda":
        raise InputError(
            "offload: got True on the CPU, whose memory is where weights lie already; expected False, or a CUDA device"
        )
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    ignored = set(own)
    for block in blocks:
        after = zero == 3
        fully_shard(block, mesh=mesh, reshard_after_forward=after, offload_policy=policy, ignored_params=ignored)
    fully_shard(module, mesh=mesh, reshard_after_forward=False, offload_policy=policy, ignored_params=ignored)


def owners(weights: list[Tensor], ranks: int) -> list[int]:
    """Which rank keeps the optimiser's state of each weight: the largest first, to whom has least."""
    load = [0] * ranks
    owner = [0] * len(weights)
    for index in sorted(range(len(weights)), key=lambda index: -weights[index].numel()):
        owner[index] = load.index(min(load))
        load[owner[index]] += weights[index].numel()
    return owner


def share_state(optimiser: torch.optim.Optimizer, group: ProcessGroup) -> None:
    """ZeRO-1: this rank's `optimiser` keeps the weights that are its own, and a step ends with all ranks having all.

    To be called before the first step, with the same optimiser on every rank.
    """
    if optimiser.state:
        raise InputError("zero 1: the optimiser has made steps already; divide its state before the first one")
    weights = [weight for part in optimiser.param_groups for weight in part["params"]]
    owner = dict(zip(weights, owners(weights, group.size()), strict=True))
    for part in optimiser.param_groups:
        part["params"] = [weight for weight in part["params"] if owner[weight] == group.rank()]

    def send(*_: Any) -> None:
        for weight, rank in owner.items():
            if rank != group.rank():
                weight.grad = None  # the optimiser's zero_grad does not know it
        with torch.no_grad():
            works = [
                distributed.broadcast(weight, group=group, group_src=rank, async_op=True)
                for weight, rank in owner.items()
            ]
        for work in works:
            work.wait()

    optimiser.register_step_post_hook(send)
