"""The linear cross entropy on CUDA devices: torch's matrix products, and one Triton kernel between them.

All logits of some rows at a time, in a buffer of bounded size. The kernel has a row to a program: it walks over the
logits with a running maximum and sum, and once more to turn them into the gradient of the loss, which two products
take to the hidden states and to the weight. A product with the softmax inside would save writing and reading the
logits, 14 bytes each where the products do 6 · width FLOPs, but would have to compute them twice more for the
gradients, and a product in Triton reaches some two thirds of the library's speed: it would lose from a width of
some 500 on.

Halves are multiplied as they are, their products are float32 numbers; so are the logits and the sums over rows. The
gradient of the logits is rounded to the half for the products. For float16, whose smallest numbers are far larger
than most of a softmax, it is multiplied by a power before.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (Triton takes no annotations beside tl.constexpr)

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from verim.ops.launch import launch

_BUFFER = 1 << 27  # logits of a piece: 512 MiB
_BLOCK = 4096  # logits that a program holds at once
_ALIGNED = 16  # rows of the buffer begin at multiples
_LARGEST = 256.0  # gradient of a loss, with float16
_LOG2_E = tl.constexpr(1.4426950408889634)


def linear_cross_entropy_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """The loss of each row, and [rows, 2] with the largest logit z and the sum of exp(z - largest) of each.

    `hidden` [rows, width] and `targets` [rows]; a `softcap` of 0 is none. Both results float32, 0 in ignored rows.
    """
    options = ignore_index, label_smoothing, softcap, z_loss
    losses, normalisers, *_ = _by_rows(hidden, weight, bias, targets, None, None, options, (False, False, False))
    return losses, normalisers


def linear_cross_entropy_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    normalisers: Tensor,
    dlosses: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias where asked for, else empty tensors.

    `normalisers` as `linear_cross_entropy_forward` gives them, `dlosses` [rows] the gradients of the losses.
    """
    options, needed = (ignore_index, label_smoothing, softcap, z_loss), (for_hidden, for_weight, for_bias)
    known = normalisers.contiguous()
    _, _, dhidden, dweight, dbias = _by_rows(hidden, weight, bias, targets, known, dlosses, options, needed)
    return dhidden, dweight, dbias


def linear_cross_entropy_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dlosses: Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The losses, and at once the gradients for known gradients `dlosses` [rows] of them."""
    options, needed = (ignore_index, label_smoothing, softcap, z_loss), (for_hidden, for_weight, for_bias)
    losses, _, dhidden, dweight, dbias = _by_rows(hidden, weight, bias, targets, None, dlosses, options, needed)
    return losses, dhidden, dweight, dbias


def _by_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    known: Tensor | None,
    dlosses: Tensor | None,
    options: tuple[int, float, float, float],
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, normalisers (those `known`, if any) and, where `dlosses` are given, the gradients that are needed."""
    (rows, width), vocab, half = hidden.shape, weight.shape[0], hidden.dtype
    singles = partial(torch.empty, dtype=torch.float32, device=hidden.device)
    losses, normalisers = singles(rows), singles(rows, 2) if known is None else known
    dhidden = torch.empty(hidden.shape if needed[0] else (0,), dtype=half, device=hidden.device)
    dweight = singles(weight.shape if needed[1] else (0,)).zero_()
    dbias = singles(vocab if needed[2] and bias is not None else 0).zero_()
    if dlosses is not None:  # what an ignored row holds reaches no gradient
        hidden = hidden.where((targets != options[0])[:, None], 0)
    hidden = hidden.to(weight.dtype)
    unit = _unit(dlosses) if dlosses is not None and hidden.dtype is torch.float16 and rows else None

    pieces = triton.cdiv(rows * vocab, _BUFFER)
    size = triton.cdiv(rows, max(1, min(pieces, rows)))
    stride = triton.cdiv(vocab, _ALIGNED) * _ALIGNED
    logits = singles(size, stride)[:, :vocab]
    changed = logits if hidden.dtype is torch.float32 else logits.new_empty(size, stride, dtype=hidden.dtype)[:, :vocab]
    of_rows = singles(size if needed[0] else 0, width)
    constants = {
        "BLOCK": min(_BLOCK, triton.next_power_of_2(vocab)),
        "CAPPED": options[2] > 0,
        "SMOOTHED": options[1] > 0,
        "KNOWN": known is not None,
    }
    added = None if bias is None else bias.contiguous()
    for start in range(0, rows, max(size, 1)):
        part = slice(start, min(start + size, rows))
        piece, of_piece = logits[: part.stop - start], changed[: part.stop - start]
        _multiply(hidden[part], weight.t(), piece, False)
        upstream = None if dlosses is None else dlosses[part].contiguous()
        tensors = piece, of_piece, added, targets[part].contiguous(), upstream, unit, losses[part], normalisers[part]
        launch(_row, len(piece), hidden, *tensors, vocab, stride, *options, warps=8, **constants)
        if needed[0]:
            _multiply(of_piece, weight, of_rows[: len(piece)], False)
            dhidden[part] = of_rows[: len(piece)] if unit is None else of_rows[: len(piece)] * unit
        if needed[1]:
            _multiply(of_piece.t(), hidden[part], dweight, start > 0)
        if len(dbias):
            dbias += of_piece.sum(0, dtype=torch.float32)
    if unit is not None:
        dweight *= unit
        dbias *= unit
    return losses, normalisers, dhidden, dweight.to(weight.dtype), dbias.to(half if bias is None else bias.dtype)


def _unit(dlosses: Tensor) -> Tensor:
    """What the gradients of logits in float16 are multiples of."""
    return (dlosses.abs().amax().float() / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)


def _multiply(left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
    """`out` = left right, added to it with `add`: sums in float32 of halves, too."""
    if left.dtype is torch.float32:
        torch.addmm(out, left, right, beta=float(add), out=out)
    elif out.device.type == "cuda":
        torch.addmm(out, left, right, out_dtype=torch.float32, beta=float(add), out=out)
    else:  # under Triton's interpreter
        torch.addmm(out, left.float(), right.float(), beta=float(add), out=out)


@triton.jit
def _bend(x, softcap):
    """softcap tanh(x / softcap)."""
    below = tl.exp2(tl.abs(x) / softcap * (-2 * _LOG2_E))
    bent = softcap * (1 - below) / (1 + below)
    return tl.where(x < 0, -bent, bent)


@triton.jit
def _logit(row, bias, at, mask, other, softcap, CAPPED: tl.constexpr):
    """The logits at some places, with bias and cap."""
    x = tl.load(row + at, mask=mask, other=other)
    if bias is not None:
        x += tl.load(bias + at, mask=mask, other=0.0).to(tl.float32)
    if CAPPED:
        x = tl.where(mask, _bend(x, softcap), other)
    return x


@triton.jit(do_not_specialize=("ignore_index", "vocab"))
def _row(
    logits,
    changed,
    bias,
    targets,
    dlosses,
    unit,
    losses,
    normalisers,
    vocab,
    stride,
    ignore_index,
    smoothing,
    softcap,
    z_loss,
    BLOCK: tl.constexpr,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    KNOWN: tl.constexpr,
):
    """A program: the loss of a row, and its logits turned into the gradient."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * stride
    target = tl.load(targets + index)
    counted = target != ignore_index
    if KNOWN:
        largest, total = tl.load(normalisers + 2 * index), tl.load(normalisers + 2 * index + 1)
        total = tl.where(counted, total, 1.0)
    else:
        largest, total, everything = float("-inf"), 0.0, 0.0
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = _logit(row, bias, at, at < vocab, float("-inf"), softcap, CAPPED)
            top = tl.maximum(largest, tl.max(z, 0))
            base = tl.where(top == float("-inf"), 0.0, top)  # nothing but -inf so far
            total = total * tl.exp2((largest - base) * _LOG2_E) + tl.sum(tl.exp2((z - base) * _LOG2_E), 0)
            largest = top
            if SMOOTHED:
                everything += tl.sum(tl.where(at < vocab, z, 0.0), 0)
        known = (target >= 0) & (target < vocab)
        picked = _logit(row, bias, target, known, float("nan"), softcap, CAPPED)
        logarithm = tl.log(total)
        partition = largest + logarithm
        loss = (1 - smoothing) * (largest - picked) + logarithm + z_loss * partition * partition
        if SMOOTHED:
            loss += smoothing * (largest - everything / vocab)
        tl.store(losses + index, tl.where(counted, loss, 0.0))
        tl.store(normalisers + 2 * index, tl.where(counted, largest, 0.0))
        tl.store(normalisers + 2 * index + 1, tl.where(counted, total, 0.0))
    if dlosses is not None:
        dloss = tl.load(dlosses + index)
        if unit is not None:
            dloss /= tl.load(unit)
        partition = largest + tl.log(total)
        factor = dloss * (1 + 2 * z_loss * partition) / total
        changed += index * stride
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = _logit(row, bias, at, at < vocab, largest, softcap, CAPPED)
            g = factor * tl.exp2((z - largest) * _LOG2_E) - dloss * smoothing / vocab
            g = tl.where(at == target, g - dloss * (1 - smoothing), g)
            if CAPPED:
                g *= 1 - (z / softcap) * (z / softcap)
            tl.store(changed + at, tl.where(counted, g, 0.0).to(changed.dtype.element_ty), mask=at < vocab)
