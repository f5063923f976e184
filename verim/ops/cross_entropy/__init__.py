"""The loss of a language model: cross entropy of the next token, with its gradient computed on the way."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.errors import InputError
from verim.ops.backend import FLOATS_ON_CPU, takes_fast_path
from verim.ops.cross_entropy import cpu
from verim.ops.cross_entropy.cost import forward_cost
from verim.ops.cross_entropy.reference import cross_entropy_reference
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import follow_autocast, widen

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

    bfloat16 and float16 logits are computed in float32, and so is the loss; their gradient is rounded once. The fast
    version (on the CPU, float32 and halves) computes the gradient, (softmax - one-hot) / number, in the same pass and
    keeps it instead of the logits; the backward pass only scales it, and does nothing where the gradient of the
    loss is 1. It is not differentiable twice; the reference is. The same input gives the same bits, whatever the
    number of threads. `linear_cross_entropy` does without the logits.

    Raises `InputError` (a ValueError) for a wrong shape, data type, device, reduction or target.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100])).exp()
    tensor(4.)
    """
    (logits,) = follow_autocast(logits)
    _check(logits, targets, reduction)
    (values,) = widen(logits)
    if not takes_fast_path(_NAME, logits, FLOATS_ON_CPU):
        return cross_entropy_reference(values, targets, ignore_index, reduction)
    if logits.requires_grad and torch.is_grad_enabled():
        loss: Tensor = _CrossEntropy.apply(values, targets, ignore_index, reduction == "mean")
        return loss
    return cross_entropy_forward(values, targets, ignore_index, reduction == "mean", False)[0]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, mean: bool) -> Tensor:
        loss, gradient = cross_entropy_forward(logits, targets, ignore_index, mean, True)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative(_NAME)
        (gradient,) = ctx.saved_tensors
        of_loss = gradients[0]
        same = not torch.compiler.is_compiling() and of_loss.item() == 1.0
        return (gradient if same else gradient * of_loss), None, None, None


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


def _fake_forward(logits: Tensor, targets: Tensor, ignore_index: int, mean: bool, keep: bool) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty(logits.shape if keep else (0,))


cross_entropy_forward = Kernel(
    cpu.cross_entropy_forward,
    "(Tensor logits, Tensor targets, int ignore_index, bool mean, bool keep) -> (Tensor, Tensor)",
    _fake_forward,
    lambda logits, targets, *others: forward_cost(targets.numel(), logits.shape[-1], logits.element_size()),
)
