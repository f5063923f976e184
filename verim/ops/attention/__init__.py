"""Softmax attention, with rotary positions or without, on heads as they lie in a packed projection."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.attention.cpu import attention_backward, attention_forward
from verim.ops.attention.reference import attention_reference
from verim.ops.backend import takes_fast_path
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.rotary import rotary
from verim.ops.rotary.reference import rotary_reference

_NAME, _ROTARY_NAME = "attention", "rotary_attention"
_LONGEST, _WIDEST = 1024, 128  # keys and channels of a head up to which our kernel was never the slower
Heads = Float[Tensor, "batch length heads head_dim"]
Tables = tuple[Tensor, Tensor]


def attention(
    q: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch keys heads head_dim"],
    v: Float[Tensor, "batch keys heads head_dim"],
    causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "batch length heads head_dim"]:
    """softmax(scale Q Kᵀ + mask) V for each head (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    - `q` [batch, length, heads, head_dim], `k` and `v` [batch, keys, heads, head_dim], with any strides: views of
      one packed tensor are not copied. Heads come after length (in torch's `scaled_dot_product_attention` before).
    - `causal`: the last query sees all keys, the one before it all but the last, and so on; with keys = length
      that is the lower triangle, with more keys the queries continue a sequence (torch aligns the first instead).
    - `scale`: None means 1 / sqrt(head_dim).

    All tensors have one floating-point data type and one device. Two fast versions, both for float32 on the CPU,
    neither of which holds a [length, keys] matrix for all heads: up to 1024 keys and 128 channels a head our kernel,
    beyond them torch's `scaled_dot_product_attention` (measured on one AVX-512 core: at 128 positions ours takes 55
    to 75 % of torch's time, at 512 about 65 %, at 1024 and beyond 80 %; `rotary_attention` about 40 % of a rotation
    and torch's attention). Neither is differentiable twice; the reference is. Ours gives the same bits whatever
    the number of threads. A NaN in a key or value may reach the queries before it in its block of 32 positions.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device, and for fewer keys than queries with
    `causal`.

    >>> q = k = torch.zeros(1, 2, 1, 4)
    >>> v = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> attention(q, k, v.expand(1, 2, 1, 4))[0, :, 0, 0]  # equal scores: the mean of what is seen
    tensor([1., 2.])
    """
    _check(q, k, v, causal)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if not takes_fast_path(_NAME, q):
        return attention_reference(q, k, v, causal, scale)
    if not _is_small(k):
        return _torch_attention(q, k, v, causal, scale)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        result: Tensor = _Attention.apply(q, k, v, causal, scale)
        return result
    return attention_forward(_rows(q), _rows(k), _rows(v), None, causal, scale)[0]


def rotary_attention(
    qkv: Float[Tensor, "batch length 3 heads head_dim"],
    cosines: Float[Tensor, "length half"],
    sines: Float[Tensor, "length half"],
    causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "batch length heads head_dim"]:
    """`attention` of the packed queries, keys and values, with queries and keys rotated by their positions first.

    The same as `attention(rotary(q, ...), rotary(k, ...), v)` with q, k, v = qkv.unbind(2); see `rotary` for the
    rotation. The fast version rotates while it loads, and its backward pass writes one packed gradient: neither
    rotated copies nor separate gradients exist. The tables get no gradient.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> qkv = torch.arange(12.0).reshape(1, 1, 3, 1, 4)
    >>> rotary_attention(qkv, torch.ones(1, 2), torch.zeros(1, 2)).flatten()  # one position sees itself
    tensor([ 8.,  9., 10., 11.])
    """
    _check_packed(qkv, cosines, sines)
    scale = qkv.shape[4] ** -0.5 if scale is None else scale
    if takes_fast_path(_ROTARY_NAME, qkv):
        tables = cosines.contiguous(), sines.contiguous()
        if _is_small(qkv):
            if torch.is_grad_enabled() and qkv.requires_grad:
                result: Tensor = _RotaryAttention.apply(qkv, *tables, causal, scale)
                return result
            return attention_forward(*_parts(qkv), tables, causal, scale)[0]
        rotated = rotary(qkv[:, :, :2], *tables)
        return _torch_attention(rotated[:, :, 0], rotated[:, :, 1], qkv[:, :, 2], causal, scale)
    q, k = rotary_reference(qkv[:, :, :2], cosines, sines).unbind(2)
    return attention_reference(q, k, qkv[:, :, 2], causal, scale)


class _Attention(torch.autograd.Function):
    """Our kernel with its gradients. Saves the inputs, and two numbers for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
        out, statistics = attention_forward(_rows(q), _rows(k), _rows(v), None, causal, scale)
        ctx.save_for_backward(q, k, v, statistics)
        ctx.options = causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        q, k, v, statistics = ctx.saved_tensors
        targets = torch.empty(q.shape), torch.empty(k.shape), torch.empty(v.shape)
        causal, scale = ctx.options
        gradient = _rows(gradients[0])
        attention_backward(_rows(q), _rows(k), _rows(v), None, causal, scale, statistics, gradient, targets)
        return *targets, None, None


class _RotaryAttention(torch.autograd.Function):
    """The same with rotation, from one packed tensor to one packed gradient."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor, causal: bool, scale: float) -> Tensor:
        out, statistics = attention_forward(*_parts(qkv), (cosines, sines), causal, scale)
        ctx.save_for_backward(qkv, cosines, sines, statistics)
        ctx.options = causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_ROTARY_NAME)
        qkv, cosines, sines, statistics = ctx.saved_tensors
        target = torch.empty(qkv.shape)
        causal, scale = ctx.options
        gradient, tables = _rows(gradients[0]), (cosines, sines)
        attention_backward(*_parts(qkv), tables, causal, scale, statistics, gradient, _parts(target))
        return target, None, None, None, None


def _is_small(k: Tensor) -> bool:
    return k.shape[1] <= _LONGEST and k.shape[-1] <= _WIDEST


def _rows(tensor: Tensor) -> Tensor:
    """`tensor` itself where its channels lie side by side, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _parts(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries, keys and values."""
    q, k, v = _rows(qkv).unbind(2)
    return q, k, v


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Torch's kernel; where queries continue a sequence it takes a mask, as it would align the first query."""
    length, keys = q.shape[1], k.shape[1]
    mask = torch.ones(length, keys, dtype=torch.bool).tril(keys - length) if causal and keys > length else None
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mixed = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale
    )
    return mixed.transpose(1, 2).contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    if q.dim() != 4 or not q.is_floating_point():
        raise InputError(
            f"{_NAME}: argument q is {q.dtype} of shape {tuple(q.shape)}, expected a floating-point tensor "
            "[batch, length, heads, head_dim]"
        )
    batch, length, heads, dim = q.shape
    for name, tensor in (("k", k), ("v", v)):
        keys = tensor.shape[1] if name == "k" and tensor.dim() == 4 else k.shape[1]
        if tensor.shape != (batch, keys, heads, dim):
            raise InputError(
                f"{_NAME}: argument {name} has shape {tuple(tensor.shape)}, expected [batch, keys, heads, head_dim] "
                f"= {(batch, keys, heads, dim)} as q and k have it"
            )
        _check_like(_NAME, name, tensor, q)
    if k.shape[1] < (length if causal else 1):
        raise InputError(
            f"{_NAME}: argument k has {k.shape[1]} keys, expected at least {length if causal else 1}"
            + (f" for {length} queries with causal=True: pass causal=False or all keys" if causal else "")
        )


def _check_packed(qkv: Tensor, cosines: Tensor, sines: Tensor) -> None:
    if qkv.dim() != 5 or qkv.shape[2] != 3 or qkv.shape[4] % 2 or not qkv.is_floating_point():
        raise InputError(
            f"{_ROTARY_NAME}: argument qkv is {qkv.dtype} of shape {tuple(qkv.shape)}, expected a floating-point "
            "tensor [batch, length, 3, heads, head_dim] with an even head_dim"
        )
    expected = (qkv.shape[1], qkv.shape[4] // 2)
    for name, table in (("cosines", cosines), ("sines", sines)):
        if table.shape != expected:
            raise InputError(
                f"{_ROTARY_NAME}: argument {name} has shape {tuple(table.shape)}, expected [length, head_dim / 2] = "
                f"{expected}: take the rows of the positions in qkv"
            )
        _check_like(_ROTARY_NAME, name, table, qkv)


def _check_like(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.dtype is not like.dtype or tensor.device != like.device:
        raise InputError(
            f"{op}: argument {name} is {tensor.dtype} on {tensor.device}, expected {like.dtype} on {like.device} "
            f"like the first argument: convert it with {name}.to(...)"
        )
