"""Softmax attention, with rotary positions or without, on heads as they lie in a packed projection."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_is_tensor, check_tensor
from verim.ops.attention import cpu, fused, one_query, tiled
from verim.ops.attention.cost import backward_cost, forward_cost
from verim.ops.attention.dropout import draw_seed
from verim.ops.attention.reference import attention_reference
from verim.ops.attention.visible import spans_of
from verim.ops.backend import FLOATS, takes_fast_path
from verim.ops.cost import Cost
from verim.ops.derivatives import is_recorded, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import HALVES, follow_autocast
from verim.ops.rotary.reference import rotary_reference
from verim.ops.vectors import LANES

_NAME, _ROTARY_NAME = "attention", "rotary_attention"
_TYPES = {device: (*types, torch.float64) for device, types in FLOATS.items()}
_FEW_QUERIES = 16  # up to which torch's kernel is the faster: ours works on 64 at a time
Implementation = Literal["auto", "kernel", "tiled", "torch"]


def attention(
    q: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads head_dim"],
    causal: bool = True,
    window: int | None = None,
    bias: Float[Tensor, "..."] | Bool[Tensor, "..."] | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    implementation: Implementation = "auto",
    padding: Int[Tensor, "batch"] | None = None,
    documents: Int[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch length heads head_dim"]:
    """softmax(scale Q Kᵀ + bias + mask) V for each head (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    Computed tile by tile with a running maximum and sum (FlashAttention, arXiv 2205.14135, and 2, arXiv 2307.08691),
    and again in the backward pass: no [length, keys] matrix of all heads exists at any time.

    - `q` [batch, length, heads, head_dim], `k` and `v` [batch, keys, kv_heads, head_dim], with any strides: views of
      one packed tensor are not copied. Heads come after length (in torch's `scaled_dot_product_attention` before).
      `kv_heads` divides `heads`: head h reads key/value head h // (heads / kv_heads), as in grouped-query attention.
    - Query i stands at position i + keys - length: positions are aligned at the end (in torch at the start), so
      queries may continue a sequence whose keys are kept. `causal`: a query sees the keys up to its own position.
      `window` n: it sees the last n of them, its own position included; without `causal` the positions less than n
      away on both sides. Computing time is then linear in the length.
    - `bias`: added to the scaled scores; broadcastable to [batch, heads, length, keys], of the type of `q` or float32.
      -inf hides a key. It gets a gradient if it requires one. Boolean: a mask, True where a key may be seen.
    - `dropout`: the probability with which a weight is dropped; those that are kept are divided by 1 - dropout. The
      mask follows from one number drawn from torch's default generator (see `verim.ops.attention.dropout`).
    - `scale`: None means 1 / sqrt(head_dim).
    - `padding` [batch], int64: nobody sees the first so many keys of a sequence. Sequences of different length are
      aligned at the end so.
    - `documents` [batch, length], int32 or int64, for `causal` calls with as many queries as keys: sequences packed one
      behind the other, numbered by position. A query sees its own alone: keys back to where the number last changed.
      Tiles before that are not computed, so many short documents cost as much less as the pairs that are left.
    - `implementation`: "kernel" (Numba or Triton), "tiled" (the same algorithm over torch's matrix products, for any
      device and type), "torch" (torch's own fused CPU kernel, which knows neither windows, biases nor dropout), or
      "auto": "tiled" for float64, "torch" for up to 16 queries on the CPU where it knows the call, else "kernel"; one
      float32 query a sequence has a kernel of its own on the CPU, where no bias, dropout or gradient is asked for.

    A query that sees no key, because of the bias, the window or fewer keys than queries, gives zeros, and zero
    gradients. All tensors have one floating-point data type and one device. Halves are multiplied and summed in
    float32, and rounded once; under `torch.autocast` queries, keys and values are converted to its type, as torch's
    attention does. Not differentiable twice; the reference is. The same input gives the same bits, whatever
    the number of threads. A NaN reaches every query that sees it, and may
    reach others.

    Raises `InputError` (a ValueError) for a wrong shape, data type, device or option.

    >>> q = k = torch.zeros(1, 2, 1, 4)
    >>> v = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> attention(q, k, v.expand(1, 2, 1, 4))[0, :, 0, 0]  # equal scores: the mean of what is seen
    tensor([1., 2.])
    >>> attention(q, k, v.expand(1, 2, 1, 4), window=1)[0, :, 0, 0]  # itself alone
    tensor([1., 3.])
    """
    q, k, v = follow_autocast(q, k, v, lower=True)
    plain = bias is None and documents is None and not dropout
    if implementation == "auto" and plain and _is_one_query(q, k, v, window, padding):
        scale = q.shape[3] ** -0.5 if scale is None else scale
        return one_query_attention(q, k, v, padding, min(window or 0, k.shape[1]), float(scale))
    _check(q, k, v, dropout, window, padding)
    bias = None if bias is None else _four_axes(bias, q, k)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    seed = draw_seed() if dropout else None
    window = 0 if window is None else min(window, q.shape[1] + k.shape[1])  # a wider one hides nothing
    if padding is not None:
        bias = _with_padding(bias, padding, q, k)
    spans = None if documents is None else _spans(_NAME, documents, causal, q, k)
    options = bias, bool(causal), window, float(dropout), seed, float(scale), spans
    if not takes_fast_path(_NAME, q, _TYPES):
        return attention_reference(q, k, v, *options)
    chosen = _choice(q, k, *options) if implementation == "auto" else implementation
    if chosen == "torch":
        return _fused(q, k, v, *options)
    known = _known(chosen, q)
    if is_recorded(q, k, v, bias):
        result: Tensor = _Attention.apply(known, q, k, v, *options)
        return result
    return _KERNELS[known][0](q, k, v, *options)[0]


def rotary_attention(
    qkv: Float[Tensor, "batch length 3 heads head_dim"],
    cosines: Float[Tensor, "length half"],
    sines: Float[Tensor, "length half"],
    causal: bool = True,
    scale: float | None = None,
    documents: Int[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch length heads head_dim"]:
    """`attention` of the packed queries, keys and values, with queries and keys rotated by their positions first.

    The same as `attention(rotary(q, ...), rotary(k, ...), v)` with q, k, v = qkv.unbind(2); see `rotary` for the
    rotation. The fast version rotates while it loads, and its backward pass writes one packed gradient: neither
    rotated copies nor separate gradients exist. The tables get no gradient; beside halves they may be float32.
    `documents` as in `attention`.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> qkv = torch.arange(12.0).reshape(1, 1, 3, 1, 4)
    >>> rotary_attention(qkv, torch.ones(1, 2), torch.zeros(1, 2)).flatten()  # one position sees itself
    tensor([ 8.,  9., 10., 11.])
    """
    (qkv,) = follow_autocast(qkv, lower=True)
    _check_packed(qkv, cosines, sines)
    scale = qkv.shape[4] ** -0.5 if scale is None else scale
    spans = None if documents is None else _spans(_ROTARY_NAME, documents, causal, qkv, qkv)
    if not takes_fast_path(_ROTARY_NAME, qkv, FLOATS):
        q, k = rotary_reference(qkv[:, :, :2], cosines, sines).unbind(2)
        return attention_reference(q, k, qkv[:, :, 2], None, causal, 0, 0.0, None, scale, spans)
    if is_recorded(qkv):
        result: Tensor = _RotaryAttention.apply(qkv, cosines, sines, causal, scale, spans)
        return result
    return rotary_attention_forward(qkv, cosines, sines, causal, scale, spans)[0]


class _Attention(torch.autograd.Function):
    """An algorithm of our own with its gradients. Saves the inputs, the output, and a number for each query."""

    @staticmethod
    def forward(
        ctx: Any,
        implementation: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        causal: bool,
        window: int,
        dropout: float,
        seed: Tensor | None,
        scale: float,
        spans: Tensor | None,
    ) -> Tensor:
        out, logsumexp = _KERNELS[implementation][0](q, k, v, bias, causal, window, dropout, seed, scale, spans)
        ctx.save_for_backward(q, k, v, bias, out, logsumexp, seed, spans)
        ctx.implementation, ctx.options = implementation, (causal, window, dropout, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        q, k, v, bias, out, logsumexp, seed, spans = ctx.saved_tensors
        causal, window, dropout, scale = ctx.options
        of_bias = ctx.needs_input_grad[4]
        dq, dk, dv, dbias = _KERNELS[ctx.implementation][1](
            q, k, v, bias, out, logsumexp, gradients[0], causal, window, dropout, seed, scale, of_bias, spans
        )
        return None, dq, dk, dv, dbias if of_bias else None, None, None, None, None, None, None


class _Fused(torch.autograd.Function):
    """Torch's fused kernel, counted as ours is."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
        out, logsumexp = torch_attention_forward(q, k, v, causal, scale)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.options = causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        return *torch_attention_backward(*ctx.saved_tensors, gradients[0], *ctx.options), None, None


class _RotaryAttention(torch.autograd.Function):
    """The same with rotation, from one packed tensor to one packed gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cosines: Tensor,
        sines: Tensor,
        causal: bool,
        scale: float,
        spans: Tensor | None,
    ) -> Tensor:
        out, logsumexp = rotary_attention_forward(qkv, cosines, sines, causal, scale, spans)
        ctx.save_for_backward(qkv, cosines, sines, out, logsumexp, spans)
        ctx.options = causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_ROTARY_NAME)
        *saved, spans = ctx.saved_tensors
        dqkv = rotary_attention_backward(*saved, gradients[0], *ctx.options, spans)
        return dqkv, None, None, None, None, None


def _choice(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    causal: bool,
    window: int,
    dropout: float,
    seed: Tensor | None,
    scale: float,
    spans: Tensor | None,
) -> Implementation:
    """The fastest for a call."""
    if q.dtype is torch.float64:
        return "tiled"
    few = q.device.type == "cpu" and q.shape[1] <= _FEW_QUERIES
    return "torch" if few and not _not_fused(q, k, bias, causal, window, dropout, spans) else "kernel"


def _known(implementation: str, q: Tensor) -> str:
    names = ("tiled",) if q.dtype is torch.float64 else ("kernel", "tiled")
    if implementation in names:
        return implementation
    if implementation == "kernel":
        raise InputError(
            f"{_NAME}: argument implementation is 'kernel', which knows float32, bfloat16 and float16, but q is "
            f"{q.dtype}: leave it out, or pass 'tiled'"
        )
    raise InputError(
        f"{_NAME}: argument implementation is {implementation!r}, expected 'auto', 'kernel', 'tiled' or 'torch'"
    )


def _not_fused(
    q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, window: int, dropout: float, spans: Tensor | None
) -> str:
    """Why torch's fused kernel cannot do a call; empty if it can."""
    if bias is not None or spans is not None or window or dropout:
        return "a bias, a window, documents or dropout"
    if not q.numel() or not k.numel():
        return "empty tensors"
    if causal and q.shape[1] not in (1, k.shape[1]):
        return f"{q.shape[1]} causal queries at the end of {k.shape[1]} keys"
    return ""


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    window: int,
    dropout: float,
    seed: Tensor | None,
    scale: float,
    spans: Tensor | None,
) -> Tensor:
    reason = _not_fused(q, k, bias, causal, window, dropout, spans)
    if reason or q.device.type != "cpu":
        raise InputError(
            f"{_NAME}: argument implementation is 'torch', whose fused kernel does not know "
            f"{reason or f'tensors on {q.device}'}: leave it out, or pass 'kernel' or 'tiled'"
        )
    causal = causal and q.shape[1] > 1  # a last query sees all keys
    if is_recorded(q, k, v):
        result: Tensor = _Fused.apply(q, k, v, causal, scale)
        return result
    return torch_attention_forward(q, k, v, causal, scale)[0]


def paged_attention(
    q: Float[Tensor, "batch 1 heads head_dim"],
    k: Float[Tensor, "pages 16 kv_heads head_dim"],
    v: Float[Tensor, "pages 16 kv_heads head_dim"],
    table: Int[Tensor, "batch pages_of_a_sequence"],
    lengths: Int[Tensor, "batch"],
    scale: float | None = None,
) -> Float[Tensor, "batch 1 heads head_dim"]:
    """`attention` of one query a sequence, whose keys lie in pages: sequences grow without being moved.

    Key i of a sequence is number i mod 16 of page table[i // 16]; it has `lengths` of them, at least one, and the query
    sees them all (PagedAttention: Kwon et al. 2023, arXiv 2309.06180, section 4.1). The fast version, float32 on the
    CPU with a head_dim in sixteens and no gradient, reads them where they lie; elsewhere they are gathered first.

    Raises `InputError` (a ValueError) for pages of another size, or a table that does not fit.
    """
    if k.dim() != 4 or k.shape[1] != one_query.PAGE or v.shape != k.shape:
        raise InputError(
            f"paged_attention: arguments k and v have shapes {tuple(k.shape)} and {tuple(v.shape)}, expected one shape "
            f"[pages, {one_query.PAGE}, kv_heads, head_dim]"
        )
    if table.dim() != 2 or table.dtype is not torch.int64 or lengths.dtype is not torch.int64 or q.shape[1] != 1:
        raise InputError(
            f"paged_attention: argument table is {table.dtype} of shape {tuple(table.shape)}, lengths {lengths.dtype},"
            f" q has {q.shape[1]} queries; expected torch.int64 of two axes, torch.int64, and one query a sequence"
        )
    if len(table) != len(q) or lengths.shape != q.shape[:1]:
        raise InputError(
            f"paged_attention: got a table of {len(table)} rows and lengths {tuple(lengths.shape)} for {len(q)} queries"
        )
    page = k[: len(q)]  # of the shape that the kernel of one query asks for
    if len(page) == len(q) and _is_one_query(q, page, page, None, None) and is_side_by_side(k, v, table, lengths):
        scale = q.shape[3] ** -0.5 if scale is None else scale
        return one_query_attention(q, k, v, None, 0, float(scale), table, lengths)
    keys, values = (tensor[table].flatten(1, 2) for tensor in (k, v))
    hidden = torch.arange(keys.shape[1], device=k.device) >= lengths[:, None, None, None]
    mask = q.new_zeros(()).masked_fill(hidden, -torch.inf)
    return attention(q, keys, values, causal=False, bias=mask, scale=scale)


def is_side_by_side(k: Tensor, v: Tensor, table: Tensor, lengths: Tensor) -> bool:
    """Whether the kernel of one query can read pages and table where they are."""
    return k.stride(3) == v.stride(3) == 1 and table.is_cpu and lengths.is_cpu


def _is_one_query(q: Tensor, k: Tensor, v: Tensor, window: int | None, padding: Tensor | None) -> bool:
    """Whether a call without bias and dropout is right in all respects and one for the kernel of one query."""
    return (
        isinstance(q, Tensor)
        and isinstance(k, Tensor)
        and isinstance(v, Tensor)
        and q.dim() == k.dim() == 4
        and q.shape[1] == 1
        and q.is_cpu
        and k.is_cpu
        and v.is_cpu
        and q.dtype is k.dtype is v.dtype is torch.float32
        and k.shape == v.shape
        and k.numel() > 0
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and q.shape[3] % LANES == 0
        and q.shape[2] % k.shape[2] == 0
        and k.stride(3) == v.stride(3) == 1
        and (window is None or (type(window) is int and window > 0))
        and (padding is None or (padding.dtype is torch.int64 and padding.shape == q.shape[:1] and padding.is_cpu))
        and not is_recorded(q, k, v)
        and takes_fast_path(_NAME, q, _TYPES)
    )


def _with_padding(bias: Tensor | None, padding: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A bias that also hides the first `padding` keys of every sequence."""
    hidden = torch.arange(k.shape[1], device=k.device) < padding[:, None, None, None]
    return (q.new_zeros(()) if bias is None else bias).masked_fill(hidden, -torch.inf)


def _spans(name: str, documents: Tensor, causal: bool, q: Tensor, k: Tensor) -> Tensor:
    """Where each position's document begins and ends; `q` and `k` begin with [batch, length]."""
    check_is_tensor(name, "documents", documents)
    integers = documents.dtype in (torch.int32, torch.int64)
    if not integers or documents.shape != q.shape[:2] or documents.device != q.device:
        raise InputError(
            f"{name}: argument documents is {documents.dtype} of shape {tuple(documents.shape)} on {documents.device}, "
            f"expected torch.int32 or int64 of shape {tuple(q.shape[:2])}, a number for each position, on {q.device}"
        )
    if not causal or k.shape[1] != q.shape[1]:
        raise InputError(
            f"{name}: argument documents is given with causal={bool(causal)}, {q.shape[1]} queries and {k.shape[1]} "
            "keys, expected causal=True and as many queries as keys: pass a bias for other masks"
        )
    return spans_of(documents)


def _check(q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None, padding: Tensor | None = None) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_is_tensor(_NAME, name, tensor)
    if q.dim() != 4 or not q.is_floating_point() or not q.shape[2] * q.shape[3]:
        raise InputError(
            f"{_NAME}: argument q is {q.dtype} of shape {tuple(q.shape)}, expected a floating-point tensor "
            "[batch, length, heads, head_dim] with at least one head and one channel"
        )
    batch, _, heads, dim = q.shape
    expected = "[batch, keys, kv_heads, head_dim]"
    if k.dim() != 4:
        raise InputError(f"{_NAME}: argument k has shape {tuple(k.shape)}, expected {expected}")
    keys, kv_heads = k.shape[1:3]
    check_tensor(_NAME, "k", k, (batch, keys, kv_heads, dim), f"{expected} with batch and head_dim of q", q)
    check_tensor(_NAME, "v", v, (batch, keys, kv_heads, dim), f"{expected} of k", q)
    if not kv_heads or heads % kv_heads:
        raise InputError(
            f"{_NAME}: argument k has {kv_heads} heads, expected a divisor of the {heads} heads of q: each key/value "
            "head serves the same number of query heads"
        )
    if not 0 <= dropout < 1:
        raise InputError(f"{_NAME}: argument dropout is {dropout}, expected a probability of at least 0, less than 1")
    if window is not None and (isinstance(window, bool | float) or window < 1):
        raise InputError(
            f"{_NAME}: argument window is {window}, expected a whole number of at least 1 (the position "
            "itself), or None for no window"
        )
    if padding is not None:
        check_is_tensor(_NAME, "padding", padding)
        if padding.dtype is not torch.int64 or padding.shape != (batch,) or padding.device != q.device:
            raise InputError(
                f"{_NAME}: argument padding is {padding.dtype} of shape {tuple(padding.shape)} on {padding.device}, "
                f"expected torch.int64 of shape {(batch,)}, a number of keys for each sequence, on {q.device}"
            )


def _four_axes(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A bias or mask [batch or 1, heads or 1, length or 1, keys or 1], in numbers to add."""
    whole = q.shape[0], q.shape[2], q.shape[1], k.shape[1]
    check_is_tensor(_NAME, "bias", bias)
    four = bias[(None,) * (4 - bias.dim())] if bias.dim() < 4 else bias
    if four.dim() != 4 or any(own not in (1, size) for own, size in zip(four.shape, whole, strict=True)):
        raise InputError(
            f"{_NAME}: argument bias has shape {tuple(bias.shape)}, expected one that broadcasts to [batch, heads, "
            f"length, keys] = {whole}"
        )
    if not four.requires_grad and not torch.compiler.is_compiling():
        for axis, (size, stride) in enumerate(zip(four.shape, four.stride(), strict=True)):
            if size > 1 and stride == 0:  # expanded: what is the same everywhere stays one
                four = four.narrow(axis, 0, 1)
    if four.dtype is torch.bool and four.device == q.device:
        return torch.zeros_like(four, dtype=q.dtype).masked_fill_(~four, -torch.inf)
    check_tensor(_NAME, "bias", four, four.shape, "", q, or_float32=True)
    return four


def _check_packed(qkv: Tensor, cosines: Tensor, sines: Tensor) -> None:
    if qkv.dim() != 5 or qkv.shape[2] != 3 or qkv.shape[4] % 2 or not qkv.is_floating_point() or not qkv.shape[4]:
        raise InputError(
            f"{_ROTARY_NAME}: argument qkv is {qkv.dtype} of shape {tuple(qkv.shape)}, expected a floating-point "
            "tensor [batch, length, 3, heads, head_dim] with an even head_dim"
        )
    expected = (qkv.shape[1], qkv.shape[4] // 2)
    for name, table in (("cosines", cosines), ("sines", sines)):
        meaning = "[length, head_dim / 2], the rows of the positions in qkv,"
        check_tensor(_ROTARY_NAME, name, table, expected, meaning, qkv, or_float32=True)


def _rows_type(q: Tensor) -> torch.dtype:
    return torch.float32 if q.dtype in HALVES else q.dtype


def _fake_forward(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, length, dtype=_rows_type(q))


_BIAS_GRADIENT = 8  # its place behind the bias


def _fake_backward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    wanted = bias if bias is not None and others[_BIAS_GRADIENT] else q.new_empty(0)
    return q.new_empty(q.shape), q.new_empty(k.shape), q.new_empty(v.shape), wanted.new_empty(wanted.shape)


def _fake_torch_backward(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), q.new_empty(k.shape), q.new_empty(v.shape)


def _fake_rotary_forward(qkv: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _fake_forward(qkv[:, :, 0])


def _cost_of(part: Callable[..., Cost], q: Tensor, k: Tensor, causal: bool, window: int = 0) -> Cost:
    batch, length, heads, dim = q.shape
    return part(batch, length, k.shape[1], heads, dim, causal, q.element_size(), k.shape[2], window)


def _one_query_cost(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    window: int,
    scale: float,
    table: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Cost:
    keys = k.shape[1] if table is None else table.shape[1] * one_query.PAGE
    return forward_cost(q.shape[0], 1, keys, q.shape[2], q.shape[3], True, q.element_size(), k.shape[2], window)


_FORWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor? bias, bool causal, SymInt window, float dropout, Tensor? seed, float scale,"
    " Tensor? spans=None) -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor out, Tensor logsumexp, Tensor dout, bool causal,"
    " SymInt window, float dropout, Tensor? seed, float scale, bool bias_gradient, Tensor? spans=None)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward_kernel(function: Callable[..., Any]) -> Kernel:
    """Arguments: `bias` with four axes, `window` 0 for none, `seed` a number on the CPU, `spans` of `spans_of`: of them
    the costs, which follow from shapes, know nothing. Results: the output, and the
    logarithm of each row's sum of exponentials [batch, heads, length], +inf where a row sees nothing."""

    def cost(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, window: int, *others: Any) -> Cost:
        return _cost_of(forward_cost, q, k, causal, window)

    return Kernel(function, _FORWARD, _fake_forward, cost)


def _backward_kernel(function: Callable[..., Any]) -> Kernel:
    """Results: the gradients of q, k and v, and with `bias_gradient` that of the bias in its shape, else an empty
    tensor."""

    def cost(q: Tensor, k: Tensor, *others: Any) -> Cost:
        return _cost_of(backward_cost, q, k, others[5], others[6])

    return Kernel(function, _BACKWARD, _fake_backward, cost)


attention_forward = _forward_kernel(cpu.attention_forward)
attention_backward = _backward_kernel(cpu.attention_backward)
tiled_attention_forward = _forward_kernel(tiled.tiled_attention_forward)
tiled_attention_backward = _backward_kernel(tiled.tiled_attention_backward)
torch_attention_forward = Kernel(
    fused.torch_attention_forward,
    "(Tensor q, Tensor k, Tensor v, bool causal, float scale) -> (Tensor, Tensor)",
    _fake_forward,
    lambda q, k, v, causal, scale: _cost_of(forward_cost, q, k, causal),
)
torch_attention_backward = Kernel(
    fused.torch_attention_backward,
    "(Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, Tensor dout, bool causal, float scale)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_torch_backward,
    lambda q, k, v, out, logsumexp, dout, causal, scale: _cost_of(backward_cost, q, k, causal),
)
one_query_attention = Kernel(
    one_query.one_query_attention,
    "(Tensor q, Tensor k, Tensor v, Tensor? padding, SymInt window, float scale, Tensor? table=None,"
    " Tensor? lengths=None) -> Tensor",
    lambda q, *others: q.new_empty(q.shape),
    _one_query_cost,
)
rotary_attention_forward = Kernel(
    cpu.rotary_attention_forward,
    "(Tensor qkv, Tensor cosines, Tensor sines, bool causal, float scale, Tensor? spans=None) -> (Tensor, Tensor)",
    _fake_rotary_forward,
    lambda qkv, cosines, sines, causal, *others: _cost_of(forward_cost, qkv[:, :, 0], qkv[:, :, 1], causal),
)
rotary_attention_backward = Kernel(
    cpu.rotary_attention_backward,
    "(Tensor qkv, Tensor cosines, Tensor sines, Tensor out, Tensor logsumexp, Tensor dout, bool causal, float scale,"
    " Tensor? spans=None) -> Tensor",
    lambda qkv, *others: qkv.new_empty(qkv.shape),
    lambda qkv, *others: _cost_of(backward_cost, qkv[:, :, 0], qkv[:, :, 1], others[5]),
)
_KERNELS = {
    "kernel": (attention_forward, attention_backward),
    "tiled": (tiled_attention_forward, tiled_attention_backward),
}


def kernels_of(q: Tensor) -> tuple[Kernel, Kernel]:
    """The forward and the backward kernel for queries like `q`, for who needs the logarithm of each row's sum.

    They check nothing; see `_forward_kernel` and `_backward_kernel`.
    """
    return _KERNELS["tiled" if q.dtype is torch.float64 or not takes_fast_path(_NAME, q, _TYPES) else "kernel"]
