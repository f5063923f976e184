"""What the gradients of the fast kernels share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from verim.errors import InputError


def refuse_second_derivative(op: str) -> None:
    """Raises `InputError` in a backward pass that is itself recorded for a second derivative.

    To be called first in the `backward` of an `autograd.Function` whose kernels autograd cannot see into. (Torch's
    `once_differentiable` says the same, for some 10 µs a call.)
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise InputError(
            f"{op}: create_graph=True asks for a second derivative, which the fast kernel has not; call the op "
            'inside verim.ops.force_backend("reference"), which is differentiable any number of times'
        )


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd wants to know what is computed of these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def asked_for(gradients: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients whose inputs need one, None for the others."""
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=True))
