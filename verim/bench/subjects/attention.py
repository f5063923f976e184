"""Attention, causal: plain in float32 and bfloat16; with a window, a bias or dropout in float32."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as dropped
from torch.nn.functional import scaled_dot_product_attention

from verim.bench.limits import Products
from verim.bench.subject import Case, Limit, Peer, Run, Subject
from verim.ops import attention
from verim.ops.attention.cost import backward_cost, forward_cost
from verim.ops.attention.visible import visible

_HEADS, _HEAD_DIM = 12, 64
_LENGTHS, _QUICK_LENGTH = (512, 2048, 8192), 80
_OPTIONS_LENGTH, _WINDOW = 2048, 256
_MOST_NAIVE_FLOPS = forward_cost(1, 2048, 2048, _HEADS, _HEAD_DIM, True).flops  # longer, all scores are gigabytes


def _case(length: int, heads: int, dtype: torch.dtype = torch.float32, with_bias: bool = False, **options: Any) -> Case:
    def tensors() -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        packed = torch.randn(1, length, 3, heads, _HEAD_DIM, generator=draw).to(dtype)
        given = [tensor.requires_grad_() for tensor in packed.unbind(2)]
        if with_bias:
            given.append(torch.randn(heads, length, length, generator=draw).masked_fill(~_mask(length), -torch.inf))
        return given

    sizes = 1, length, length, heads, _HEAD_DIM, True, dtype.itemsize, None, options.get("window", 0)
    forward = forward_cost(*sizes)
    words = ["bias"] if with_bias else [f"{name} {value:g}" for name, value in options.items()]
    label = ", ".join([f"1×{length}×{heads}×{_HEAD_DIM}", *words])
    both = forward + backward_cost(*sizes)
    return Case(label, tensors, forward, both, dtype, tuple(options.items()), random="dropout" in options)


def _cases(quick: bool) -> list[Case]:
    lengths, heads = ((_QUICK_LENGTH,), 2) if quick else (_LENGTHS, _HEADS)
    plain = [_case(length, heads, dtype) for dtype in (torch.float32, torch.bfloat16) for length in lengths]
    length, window = (_QUICK_LENGTH, 16) if quick else (_OPTIONS_LENGTH, _WINDOW)
    options = [_case(length, heads, window=window), _case(length, heads, with_bias=True)]
    return [*plain, *options, *([] if quick else [_case(length, heads, dropout=0.1)])]


def _limits(case: Case) -> tuple[list[Limit], list[Limit]]:
    """The scores count a second time in the backward pass, where every fused version computes them again."""
    return [Products(case.forward, case.dtype)], [Products(case.both, case.dtype)]


@functools.cache
def _mask(length: int, window: int = 0) -> Tensor:
    return visible(range(length), range(length), 0, True, window, torch.device("cpu"))


def _ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    return attention(q, k, v, bias=bias, **options)


def _heads_first(
    product: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor],
) -> Run:
    """A peer whose heads come before the positions, and whose windows are masks, made before the first turn."""

    def run(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, window: int = 0, dropout: float = 0.0
    ) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return product(q, k, v, _mask(q.shape[2], window) if window else bias, dropout).transpose(1, 2)

    return run


def _torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)


def _naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """As it is written down, with all scores."""
    scores = q @ k.mT * q.shape[3] ** -0.5
    mask = _mask(q.shape[2]) if mask is None else mask
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    return dropped(scores.softmax(-1), dropout) @ v


SUBJECT = Subject(
    name="attention",
    axes="batch × length × heads × head_dim, causal",
    ours=_ours,
    peers=(
        Peer("torch", "torch", lambda: _heads_first(_torch)),
        Peer("naive", "torch", lambda: _heads_first(_naive), lambda case: case.forward.flops <= _MOST_NAIVE_FLOPS),
    ),
    cases=_cases,
    limits=_limits,
)
