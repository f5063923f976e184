"""What the backward passes of the fast kernels share."""

import torch

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
