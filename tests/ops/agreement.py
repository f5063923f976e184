"""A fast op against its reference in float64: outputs and all gradients, with fresh memory poisoned with NaN."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from verim.ops import force_backend

Op = Callable[..., Tensor]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside the block `torch.empty` gives NaN, so that what an op forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def output_and_gradients(op: Op, tensors: list[Tensor], weight: Tensor | None = None) -> list[Tensor]:
    """The output and the gradient of each tensor, for a fixed random gradient of the output (or `weight`)."""
    output = op(*tensors)
    if weight is None:
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad(output, tensors, weight.to(output))]


def assert_agrees(op: Op, tensors: list[Tensor], tolerance: float = 2e-6) -> None:
    """`op` on float32 `tensors` against `op` on the reference backend in float64, by relative error (norm over norm).

    The largest single error may be 20 times the tolerance, relative to the largest value of the tensor.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with poisoned_memory():
        fast = output_and_gradients(op, leaves)
    with force_backend("reference"):
        exact = output_and_gradients(op, [leaf.detach().double().requires_grad_() for leaf in leaves])
    for name, got, expected in zip(["output", *map(str, range(len(leaves)))], fast, exact, strict=True):
        assert got.shape == expected.shape, name
        if not expected.numel():
            continue
        difference = got.double() - expected
        largest = expected.abs().max()
        assert difference.norm() <= tolerance * expected.norm() + 1e-30, f"{name}: {difference.norm()}"
        assert difference.abs().max() <= 20 * tolerance * largest + 1e-30, f"{name}: {difference.abs().max()}"
