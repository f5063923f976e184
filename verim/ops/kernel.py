"""A compiled kernel as an operator that torch knows: traced by `torch.compile`, counted by `FlopCounterMode`."""

import importlib
from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Buffer, Parameter
from torch.utils.flop_counter import register_flop_formula

from verim.ops.cost import Cost

_LIBRARY = torch.library.Library("verim", "FRAGMENT")
# Arguments that kernels can read. Other tensors (a DTensor, a FakeTensor) know what to do with operators.
_PLAIN = frozenset({Tensor, Parameter, Buffer, NoneType, bool, int, float})
KERNELS: dict[str, "Kernel"] = {}  # by name, for those that walk over all of them


def is_traced() -> bool:
    """Whether someone looks at the operators that run: a compiler, or a mode as `FlopCounterMode`."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


class Kernel:
    """A function of tensors in an op's `cpu.py`, its namesake in `gpu.py`, and the operator `torch.ops.verim.<name>`.

    - `function`: the one in `cpu.py`; the one in `gpu.py` is imported when a CUDA tensor first comes. One from a file
      with another name serves all devices. Results are new tensors, never None and never views of the arguments: an
      empty tensor stands for what is not computed.
    - `schema`: arguments and results as `torch.library` writes them, "(Tensor x, Tensor? initial) -> (Tensor, Tensor)".
    - `fake(*arguments)`: tensors with the shapes, strides and data types of the results, made by `new_empty` and
      the like, without computing them.
    - `cost(*arguments)`: what a call costs.

    A call goes straight to the function (through the dispatcher it would take some 10 µs longer, and 40 µs with
    torch's own gradient registration), unless someone looks at the operators. Gradients are the affair of the
    `autograd.Function` that calls kernels: to the compiler it is transparent.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        schema: str,
        fake: Callable[..., Any],
        cost: Callable[..., Cost],
    ) -> None:
        self.name: str = function.__name__
        self.cost = cost
        self._gpu = function.__module__.removesuffix(".cpu") + ".gpu"
        self._functions = {"cpu": function}
        if not function.__module__.endswith(".cpu"):
            self._functions["cuda"] = function
        _LIBRARY.define(self.name + schema)
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA")):
            _LIBRARY.impl(self.name, self._caller(device), key)
        torch.library.register_fake(f"verim::{self.name}", fake, lib=_LIBRARY)
        self.operator: Any = getattr(torch.ops.verim, self.name).default

        def flops(*arguments: Any, out_val: Any = None, **keywords: Any) -> int:
            return cost(*arguments, **keywords).flops

        register_flop_formula(getattr(torch.ops.verim, self.name), get_raw=True)(flops)
        KERNELS[self.name] = self

    def __call__(self, *arguments: Any) -> Any:
        if is_traced() or not all(type(argument) in _PLAIN for argument in arguments):
            return self.operator(*arguments)
        return self.on("cuda" if arguments[0].is_cuda else "cpu")(*arguments)

    def on(self, device: str) -> Callable[..., Any]:
        """The function for tensors on `device`, "cpu" or "cuda"."""
        if device not in self._functions:
            self._functions[device] = getattr(importlib.import_module(self._gpu), self.name)
        return self._functions[device]

    def _caller(self, device: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return self.on(device)(*arguments)

        return call
