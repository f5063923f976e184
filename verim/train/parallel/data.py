"""Data parallelism: every rank has the whole model and some rows of the batch (torch's DistributedDataParallel)."""

from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel


def replicate(module: nn.Module, group: ProcessGroup) -> DistributedDataParallel:
    """`module` whose gradients become means over `group` in the backward pass, in buckets, while it goes on.

    Gradients lie in the buckets, so that they need no memory beside them.
    """
    return DistributedDataParallel(module, process_group=group, gradient_as_bucket_view=True)
