"""The loss of a language model straight from its last hidden states: the logits are never built whole."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_is_tensor, check_tensor
from verim.ops.backend import FLOATS, takes_fast_path
from verim.ops.derivatives import asked_for, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.linear_cross_entropy import cpu
from verim.ops.linear_cross_entropy.cost import backward_cost, forward_cost, gradients_cost
from verim.ops.linear_cross_entropy.reference import linear_cross_entropy_reference
from verim.ops.precision import follow_autocast, widen, without_autocast

_NAME = "linear_cross_entropy"


def linear_cross_entropy(
    hidden: Float[Tensor, "*rest width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, "*rest"],
    ignore_index: int = -100,
    *,
    bias: Float[Tensor, "vocab"] | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Float[Tensor, "*rest"]:
    """The cross entropy, in nats, of `targets` under softmax(hidden weightᵀ + bias), averaged over the positions.

        x = hidden weightᵀ + bias                 z = softcap tanh(x / softcap), or x without a softcap
        L = log(sum_v exp(z_v))                   the logarithm of the partition function
        loss = L - (1 - e) z_target - e mean_v(z_v) + z_loss L²         e = label_smoothing

    for every position whose target is not `ignore_index`; 0 for the others, whose hidden states may hold anything.

    - `hidden` [..., width], `weight` [vocab, width], `bias` [vocab] or None: floating point.
    - `targets` [...], int64, each in 0 ... vocab - 1 or `ignore_index`.
    - `reduction`: "mean" over the positions that count (NaN where none does, as in torch), "sum", or "none" for a
      loss of each position.
    - `label_smoothing` in 0 ... 1: that share of the target's probability is spread evenly over the vocabulary.
    - `softcap`: logits are bent into (-softcap, softcap), as in Gemma 2 (arXiv 2408.00118, section 2).
    - `z_loss`: the weight of the penalty on L² that keeps logits from drifting (PaLM, arXiv 2204.02311, section 5).

    All tensors have one floating-point data type and one device; beside bfloat16 or float16 hidden states weight and
    bias may be float32. Losses of halves are float32. Gradients go to hidden, weight and bias.

    The fast version (float32 and halves, on the CPU and on CUDA devices) holds a piece of the logits at a time: beside
    the gradients themselves its memory does not grow with the vocabulary. "mean" and "sum" compute the gradients in
    the forward pass, where the logits are at hand, and only scale them in the backward pass; "none" computes the
    logits a second time there. Positions that are ignored cost nothing on the CPU. Sums are in float32; on the CPU
    so are the products of halves, also under `torch.autocast`, which on CUDA devices is followed. It is not
    differentiable twice; the reference is.

    Raises `InputError` (a ValueError) for a wrong shape, data type, device or option, and for a target outside the
    vocabulary (on CUDA devices, where looking would mean to wait for the device, its loss is NaN).

    >>> linear_cross_entropy(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([3, -100])).exp()
    tensor(4.)
    """
    for name, given in (("hidden", hidden), ("weight", weight), ("targets", targets)):
        check_is_tensor(_NAME, name, given)
    if hidden.device.type == "cuda":
        hidden, weight, bias = follow_autocast(hidden, weight, bias, lower=True)
    _check(hidden, weight, bias, targets, reduction, label_smoothing, softcap, z_loss)
    cap = softcap or 0.0
    if not takes_fast_path(_NAME, hidden, FLOATS):
        with without_autocast(hidden):
            hidden, weight, bias = widen(hidden, weight, bias)
            options = ignore_index, label_smoothing, cap, z_loss
            losses = linear_cross_entropy_reference(hidden, weight, bias, targets, *options)
        return _reduced(losses, targets, ignore_index, reduction)
    rows, of_rows = hidden.reshape(targets.numel(), hidden.shape[-1]), targets.reshape(-1)
    arguments = rows, weight, bias, of_rows, ignore_index, label_smoothing, cap, z_loss
    needed = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
    if not (torch.is_grad_enabled() and any(needed)):
        losses, _ = linear_cross_entropy_forward(*arguments)
    elif reduction == "none":
        losses = _LossOfEach.apply(*arguments)
    else:
        loss: Tensor = _Loss.apply(*arguments, reduction, *needed)
        return loss
    return _reduced(losses.view(targets.shape), targets, ignore_index, reduction)


def _reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (targets != ignore_index).sum()


class _Loss(torch.autograd.Function):
    """The mean or the sum, its gradients computed in the forward pass: the gradient of each position is known."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ignore_index: int,
        label_smoothing: float,
        softcap: float,
        z_loss: float,
        reduction: str,
        *needed: bool,
    ) -> Tensor:
        share = torch.ones((), device=hidden.device)
        if reduction == "mean":
            share = share / (targets != ignore_index).sum()
        options = ignore_index, label_smoothing, softcap, z_loss
        each = share.expand(targets.shape)
        losses, *gradients = linear_cross_entropy_gradients(hidden, weight, bias, targets, each, *options, *needed)
        ctx.save_for_backward(*gradients)
        return losses.sum() * share

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        of_loss = upstream[0]
        # a pass over the gradient of the weight is worth a look, where looking does not mean to wait
        same = not torch.compiler.is_compiling() and of_loss.device.type == "cpu" and of_loss.item() == 1.0
        gradients = (
            (gradient if same else gradient * of_loss) if needed else None
            for gradient, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        )
        return *gradients, *(None for _ in ctx.needs_input_grad[3:])


class _LossOfEach(torch.autograd.Function):
    """A loss of each position. Saves the inputs and two numbers a position."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ignore_index: int,
        label_smoothing: float,
        softcap: float,
        z_loss: float,
    ) -> Tensor:
        ctx.options = ignore_index, label_smoothing, softcap, z_loss
        losses, normalisers = linear_cross_entropy_forward(hidden, weight, bias, targets, *ctx.options)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        needed = ctx.needs_input_grad[:3]
        gradients = linear_cross_entropy_backward(*ctx.saved_tensors, upstream[0], *ctx.options, *needed)
        return *asked_for(gradients, needed), None, None, None, None, None


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    reduction: str,
    label_smoothing: float,
    softcap: float | None,
    z_loss: float,
) -> None:
    if not hidden.is_floating_point() or hidden.dim() < 1 or hidden.shape[-1] < 1:
        raise InputError(
            f"{_NAME}: argument hidden is {hidden.dtype} of shape {tuple(hidden.shape)}, expected a floating-point "
            "tensor [..., width] with width at least 1"
        )
    vocab, width = (weight.shape[0] if weight.dim() else 0), hidden.shape[-1]
    expected = f"[vocab, width] with width = {width} of hidden and vocab at least 1"
    check_tensor(_NAME, "weight", weight, (vocab or -1, width), expected, hidden, or_float32=True)
    if bias is not None:
        check_tensor(_NAME, "bias", bias, (vocab,), "[vocab of weight]", hidden, or_float32=True)
    if targets.dtype is not torch.int64:
        raise InputError(
            f"{_NAME}: argument targets is {targets.dtype}, expected torch.int64: convert it with targets.long()"
        )
    if targets.shape != hidden.shape[:-1]:
        raise InputError(
            f"{_NAME}: argument targets has shape {tuple(targets.shape)}, expected {tuple(hidden.shape[:-1])}, that "
            "of hidden without its last dimension"
        )
    if targets.device != hidden.device:
        raise InputError(
            f"{_NAME}: argument targets is on {targets.device}, expected {hidden.device} like hidden: move it with "
            f"targets.to('{hidden.device}')"
        )
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"{_NAME}: argument reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"{_NAME}: argument label_smoothing is {label_smoothing}, expected a share from 0 to 1")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise InputError(f"{_NAME}: argument softcap is {softcap}, expected a positive number, or None for none")
    if not 0 <= z_loss < float("inf"):
        raise InputError(f"{_NAME}: argument z_loss is {z_loss}, expected a number that is not negative")


def _fake_forward(hidden: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    rows = hidden.shape[0]
    return hidden.new_empty(rows, dtype=torch.float32), hidden.new_empty(rows, 2, dtype=torch.float32)


def _fake_backward(hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    tensors = hidden, weight, hidden if bias is None else bias
    return tuple(
        tensor.new_empty(tensor.shape if needed else (0,)) for tensor, needed in zip(tensors, others[-3:], strict=True)
    )


def _fake_gradients(hidden: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32), *_fake_backward(hidden, *others)


def _sizes(hidden: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    return *hidden.shape, weight.shape[0], weight.element_size()


_OPTIONS = "int ignore_index, float label_smoothing, float softcap, float z_loss"
_NEEDED = "bool for_hidden, bool for_weight, bool for_bias"
linear_cross_entropy_forward = Kernel(
    cpu.linear_cross_entropy_forward,
    f"(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, {_OPTIONS}) -> (Tensor, Tensor)",
    _fake_forward,
    lambda hidden, weight, *others: forward_cost(*_sizes(hidden, weight)),
)
linear_cross_entropy_backward = Kernel(
    cpu.linear_cross_entropy_backward,
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor normalisers, Tensor dlosses, "
    f"{_OPTIONS}, {_NEEDED}) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    lambda hidden, weight, *others: backward_cost(*_sizes(hidden, weight)),
)
linear_cross_entropy_gradients = Kernel(
    cpu.linear_cross_entropy_gradients,
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor dlosses, "
    f"{_OPTIONS}, {_NEEDED}) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_gradients,
    lambda hidden, weight, *others: gradients_cost(*_sizes(hidden, weight)),
)
