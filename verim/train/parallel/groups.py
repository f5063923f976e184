"""What the kinds of parallelism ask of a group of ranks."""

from torch import distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from verim.errors import InputError


def group_of(group: ProcessGroup | DeviceMesh) -> ProcessGroup:
    """The process group of a mesh of one dimension, or the group itself.

    Raises `InputError` for a mesh of several dimensions, and on a rank that is not a member.
    """
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise InputError(
                f"group: got a mesh of {group.ndim} dimensions, {group.mesh_dim_names}; expected one: mesh[name]"
            )
        group = group.get_group()
    if not isinstance(group, ProcessGroup) or distributed.get_rank(group) < 0:
        raise InputError(f"group: rank {distributed.get_rank()} is not a member; call it on the members only")
    return group


def own_place(group: ProcessGroup) -> int:
    """Where this rank stands in `group`."""
    return distributed.get_rank(group)
