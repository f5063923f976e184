"""The definition of AdamW's update in plain PyTorch, any floating-point data type and device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from verim.ops.adamw.codes import decode, encode
from verim.ops.adamw.tensors import AdamWRule, AdamWTensors, EightBitTensors


@torch.no_grad()
def adamw_reference(tensors: Sequence[AdamWTensors], rules: Sequence[AdamWRule], gradient_scale: float = 1.0) -> None:
    """See `verim.ops.adamw`."""
    for held, rule in zip(tensors, rules, strict=True):
        gradient = held.gradient * gradient_scale
        held.average.mul_(rule.beta1).add_(gradient, alpha=1 - rule.beta1)
        held.square.mul_(rule.beta2).add_(gradient**2, alpha=1 - rule.beta2)
        average = held.average / (1 - rule.beta1**rule.step)
        root = (held.square / (1 - rule.beta2**rule.step)).sqrt()
        change = rule.weight_decay * held.weight + average / (root + rule.eps)
        held.weight.sub_(change, alpha=rule.learning_rate)


@torch.no_grad()
def gradient_norm_reference(gradients: Sequence[Tensor]) -> Tensor:
    """See `verim.ops.gradient_norm`."""
    if all(gradient.dtype in (torch.float32, torch.float64) for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def adamw_8bit_reference(
    tensors: Sequence[EightBitTensors], rules: Sequence[AdamWRule], gradient_scale: float = 1.0
) -> None:
    """See `verim.ops.adamw.adamw_8bit`."""
    for held, rule in zip(tensors, rules, strict=True):
        average = decode(held.average, held.average_scales, signed=True).to(held.weight.dtype)
        square = decode(held.root, held.root_scales, signed=False).to(held.weight.dtype) ** 2
        adamw_reference([AdamWTensors(held.weight, held.gradient, average, square)], [rule], gradient_scale)
        for codes, scales, new, signed in (
            (held.average, held.average_scales, average, True),
            (held.root, held.root_scales, square.sqrt(), False),
        ):
            for kept, encoded in zip((codes, scales), encode(new, signed), strict=True):
                kept.copy_(encoded)
