"""Data parallelism: every rank has the whole model and some rows of the batch (torch's DistributedDataParallel)."""

from collections.abc import Iterable

from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel


def replicate(module: nn.Module, group: ProcessGroup, own: Iterable[str] = ()) -> DistributedDataParallel:
    """`module` whose gradients become means over `group` in the backward pass, in buckets, while it goes on.

    Weights named in `own` are each rank's own (its experts): nothing of them is exchanged.
    Gradients lie in the buckets, so that they need no memory beside them.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(own))
    return DistributedDataParallel(module, process_group=group, gradient_as_bucket_view=True)
