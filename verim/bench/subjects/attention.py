"""Causal attention, 12 heads of 64, in float32 and bfloat16."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from verim.bench.limits import Products
from verim.bench.subject import Case, Limit, Peer, Run, Subject
from verim.ops import attention
from verim.ops.attention.cost import backward_cost, forward_cost

_HEADS, _HEAD_DIM = 12, 64
_LENGTHS, _QUICK = (512, 2048, 8192), (80,)


def _case(length: int, heads: int, dtype: torch.dtype) -> Case:
    def tensors() -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        packed = torch.randn(1, length, 3, heads, _HEAD_DIM, generator=draw).to(dtype)
        return [tensor.requires_grad_() for tensor in packed.unbind(2)]

    sizes = 1, length, length, heads, _HEAD_DIM, True, dtype.itemsize
    forward = forward_cost(*sizes)
    label = f"1×{length}×{heads}×{_HEAD_DIM}"
    return Case(label, tensors, forward, forward + backward_cost(*sizes), dtype)


def _cases(quick: bool) -> list[Case]:
    lengths, heads = (_QUICK, 2) if quick else (_LENGTHS, _HEADS)
    return [_case(length, heads, dtype) for dtype in (torch.float32, torch.bfloat16) for length in lengths]


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    """The scores count a second time in the backward pass, where every fused version computes them again."""
    return [Products(case.forward, case.dtype)], [Products(case.both, case.dtype)]


def _torch() -> Run:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # heads come first there
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return run


SUBJECT = Subject(
    name="attention",
    axes="batch × length × heads × head_dim, causal",
    ours=attention,
    peers=(Peer("torch", "torch", _torch),),
    cases=_cases,
    limits=_limits,
)
