"""Torch's own fused attention on the CPU, as a kernel: what it cannot do is refused by the caller."""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def torch_attention_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The output and the logarithm of each row's sum of exponentials. As many queries as keys with `causal`."""
    repeats = q.shape[2] // k.shape[2]
    turned = _heads_first(q, k, v, repeats)
    out, logsumexp = _forward(*turned, 0.0, causal, scale=scale)
    return _with_lost_nans(out, logsumexp, *turned[:2], scale).transpose(1, 2).contiguous(), logsumexp.contiguous()


def torch_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dout: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    repeats = q.shape[2] // k.shape[2]
    turned = _heads_first(q, k, v, repeats)
    dq, dk, dv = _backward(
        _rows(dout).transpose(1, 2), *turned, out.transpose(1, 2), logsumexp, 0.0, causal, scale=scale
    )
    dq, dk, dv = (gradient.transpose(1, 2).contiguous() for gradient in (dq, dk, dv))
    if repeats > 1:
        dk, dv = (gradient.unflatten(2, (-1, repeats)).sum(3) for gradient in (dk, dv))
    return dq, dk, dv


def _with_lost_nans(out: Tensor, logsumexp: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Torch's kernel takes a row of scores that are all NaN for an empty one: finite numbers, a logarithm of 0."""
    lost = logsumexp == 0
    if not lost.any():
        return out
    lost &= (q.sum(-1) + k.sum((-2, -1)).unsqueeze(-1)).mul(scale).isnan()
    return out.masked_fill(lost.unsqueeze(-1), torch.nan)


def _heads_first(q: Tensor, k: Tensor, v: Tensor, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
    k, v = (tensor.repeat_interleave(repeats, 2) if repeats > 1 else tensor for tensor in (k, v))
    q, k, v = (_rows(tensor).transpose(1, 2) for tensor in (q, k, v))
    return q, k, v


def _rows(tensor: Tensor) -> Tensor:
    """Torch's kernel takes it for granted that channels lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
