"""S4D's scan over a sequence whose pieces lie on ranks."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup

from verim.nn.time_invariant import Modes, ModesState, time_invariant_scan
from verim.ops.distributed import PieceOp, Ranks, run_piece
from verim.ops.distributed.pieces import Tensors


def distributed_time_invariant_scan(
    u: Float[Tensor, "batch length channels"],
    log_transition: Modes,
    weight: Modes,
    skip: Float[Tensor, "channels"],
    group: ProcessGroup | None = None,
) -> Float[Tensor, "batch length channels"]:
    """`verim.nn.time_invariant.time_invariant_scan` of a sequence whose pieces lie on the ranks of `group`.

    Rank r gives the r-th piece of `u`, and all ranks the same rest, of whose gradient each gets the share of its
    piece: sum them. The summary of a piece is exp(length · log_transition) and the state it reaches from zero; the rest
    as `verim.ops.distributed_linear_recurrence` says.
    """
    result: Tensor = run_piece(_OP, Ranks(_OP.name, group, False), (u, log_transition, weight, skip), None, False)
    return result


def _local(
    u: Tensor,
    log_transition: Tensor,
    weight: Tensor,
    skip: Tensor,
    initial: ModesState | None,
    return_state: bool,
) -> tuple[Tensor, ModesState]:
    if u.shape[1]:
        return time_invariant_scan(u, log_transition, weight, skip, initial)
    return u, weight.new_zeros(u.shape[0], *weight.shape) if initial is None else initial


def _decay(tensors: Tensors, empty: Tensor) -> Tensor:
    u, log_transition, *_ = tensors
    assert u is not None and log_transition is not None
    return torch.exp(u.shape[1] * log_transition).to(empty.dtype)


_OP = PieceOp(
    name="distributed_time_invariant_scan",
    local=_local,
    sequences=(0,),
    state_name="initial",
    decay=_decay,
    follow=lambda decay, reached, state: decay * state + reached,
    carry_back=lambda decay, reached, state, gradient: decay.conj() * gradient,
)
