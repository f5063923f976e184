"""The loss of a language model: cross entropy of the next token, with its gradient computed on the way."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.errors import InputError
from verim.ops.backend import takes_fast_path
from verim.ops.cross_entropy import cpu
from verim.ops.cross_entropy.reference import cross_entropy_reference
from verim.ops.derivatives import refuse_second_derivative

_NAME = "cross_entropy"


def cross_entropy(
    logits: Float[Tensor, "*rest vocab"],
    targets: Int[Tensor, "*rest"],
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Tensor, ""]:
    """The cross entropy of `targets` under softmax(`logits`), in nats, averaged or summed over the positions.

        loss = sum over positions i with target_i != ignore_index of log(sum_v exp(logits_iv)) - logits_i,target_i

    divided by their number with `reduction="mean"`. The vocabulary is the last dimension (in
    `torch.nn.functional.cross_entropy` it is the second). Without any position that counts the mean is NaN and
    the sum 0. The maximum of each row is subtracted first, so logits may be as large as the data type allows.

    - `logits` [..., vocab], floating point; `targets` [...], int64, each in 0 ... vocab - 1 or `ignore_index`.

    The fast version (float32 on the CPU) computes the gradient, (softmax - one-hot) / number, in the same pass and
    keeps it instead of the logits; the backward pass only scales it, and does nothing where the gradient of the
    loss is 1. It is not differentiable twice; the reference is. The same input gives the same bits, whatever the
    number of threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type, device, reduction or target.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100])).exp()
    tensor(4.)
    """
    _check(logits, targets, reduction)
    if not takes_fast_path(_NAME, logits):
        return cross_entropy_reference(logits, targets, ignore_index, reduction)
    targets = targets.contiguous()
    count = cpu.count_targets(targets, logits.shape[-1], ignore_index)
    if count < 0:
        got = int(targets.flatten()[-1 - count])
        raise InputError(
            f"{_NAME}: argument targets holds {got}, expected 0 to {logits.shape[-1] - 1} (logits has "
            f"{logits.shape[-1]} classes) or ignore_index = {ignore_index}: give logits a larger last dimension or "
            "mask that position with ignore_index"
        )
    divisor = count if reduction == "mean" else 1
    if logits.requires_grad and torch.is_grad_enabled():
        loss: Tensor = _CrossEntropy.apply(logits, targets, ignore_index, divisor)
        return loss
    return cpu.loss_and_gradient(logits.contiguous(), targets, ignore_index, divisor, None)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, divisor: int) -> Tensor:
        gradient = torch.empty(logits.shape, dtype=torch.float32)
        ctx.save_for_backward(gradient)
        return cpu.loss_and_gradient(logits.contiguous(), targets, ignore_index, divisor, gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative(_NAME)
        (gradient,) = ctx.saved_tensors
        of_loss = gradients[0]
        return (gradient if of_loss.item() == 1.0 else gradient * of_loss), None, None, None


def _check(logits: Tensor, targets: Tensor, reduction: str) -> None:
    if not logits.is_floating_point() or logits.dim() < 1 or logits.shape[-1] < 1:
        raise InputError(
            f"{_NAME}: argument logits is {logits.dtype} of shape {tuple(logits.shape)}, expected a floating-point "
            "tensor [..., vocab] with vocab at least 1"
        )
    if targets.dtype is not torch.int64:
        raise InputError(
            f"{_NAME}: argument targets is {targets.dtype}, expected torch.int64: convert it with targets.long()"
        )
    if targets.shape != logits.shape[:-1]:
        raise InputError(
            f"{_NAME}: argument targets has shape {tuple(targets.shape)}, expected {tuple(logits.shape[:-1])}, that "
            "of logits without its last dimension"
        )
    if targets.device != logits.device:
        raise InputError(
            f"{_NAME}: argument targets is on {targets.device}, expected {logits.device} like logits: move it with "
            f"targets.to('{logits.device}')"
        )
    if reduction not in ("mean", "sum"):
        raise InputError(f"{_NAME}: argument reduction is {reduction!r}, expected 'mean' or 'sum'")
