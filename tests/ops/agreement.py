"""A fast op against its reference in float64: outputs and all gradients, with fresh memory poisoned with NaN."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from verim.ops import force_backend
from verim.ops.kernel import Kernel

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


def assert_agrees(op: Op, tensors: list[Tensor], tolerance: float = 2e-6, terms: float = 0.0) -> None:
    """`op` on float32 `tensors` against `op` on the reference backend in float64, by relative error (norm over norm).

    The largest single error may be 20 times the tolerance, relative to the largest value of the tensor. Where terms
    cancel, float32 cannot do better than some multiple of what the reference itself loses in float32: 4 times that
    is allowed too, and, where `terms` says how large single terms of the gradients are, the tolerance of that.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with poisoned_memory():
        fast = output_and_gradients(op, leaves)
    with force_backend("reference"):
        exact = output_and_gradients(op, [leaf.detach().double().requires_grad_() for leaf in leaves])
        plain = output_and_gradients(op, leaves)
    names = ["output", *(f"gradient {i}" for i in range(len(leaves)))]
    for name, got, expected, rounded in zip(names, fast, exact, plain, strict=True):
        assert got.shape == expected.shape and got.dtype is torch.float32, name
        if not expected.numel():
            continue
        error, unavoidable = got.double() - expected, rounded.double() - expected
        norm = tolerance * (expected.norm() + terms) + 4 * unavoidable.norm()
        assert error.norm() <= norm, f"{name}: error {error.norm()}, allowed {norm}"
        largest = 20 * tolerance * (expected.abs().max() + terms) + 4 * unavoidable.abs().max()
        assert error.abs().max() <= largest, f"{name}: largest error {error.abs().max()}, allowed {largest}"


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside the block the functions of an op's `gpu.py` run on CPU tensors too, in Triton's interpreter.

    The fakes still describe those of `cpu.py`: nothing may be compiled or counted meanwhile. On a machine with a
    CUDA device (where there is no interpreter; see conftest.py) use CUDA tensors instead.
    """
    on = Kernel.on

    def on_triton(kernel: Kernel, device: str) -> Callable[..., Any]:
        module = on(kernel, "cpu").__module__.removesuffix(".cpu") + ".gpu"
        return getattr(importlib.import_module(module), kernel.name) if find_spec(module) else on(kernel, device)

    with patch.object(Kernel, "on", on_triton):
        yield


class Allocations(TorchDispatchMode):
    """The number of entries of every tensor that `torch.empty` and `torch.zeros` make, in kernels too."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __enter__(self) -> "Allocations":
        self._patch = patch("verim.ops.kernel.is_traced", return_value=False)  # or kernels would be opaque
        self._patch.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.empty.memory_format, torch.ops.aten.zeros.default):
            self.sizes.append(result.numel())
        return result
