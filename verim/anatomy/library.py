"""Memory that a library decides on: oneDNN's recurrent layers keep a workspace of their own size for the backward pass,
and hold buffers while they run. It is found by running the layer on two short sequences: it grows with the length.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from verim.anatomy.allocations import allocator_peak
from verim.anatomy.costs import tensors_in

FORWARD, BACKWARD = "aten.mkldnn_rnn_layer", "aten.mkldnn_rnn_layer_backward"
_SHORT, _LONG = 8, 16
_WORKSPACE = 3  # its place among the results


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of the workspace, and what the passes hold inside beside their results."""

    workspace: float
    forward: float
    backward: float


@functools.cache
def layer_bytes(
    length: int, batch: int, inputs: int, hidden: int, weights: tuple[tuple[int, ...], ...], others: tuple[Any, ...]
) -> LayerBytes:
    """Of a layer on `length` positions; `others`: the call's arguments after its tensors."""
    with _disable_current_modes(), torch.enable_grad():
        short, long = (_measured(steps, batch, inputs, hidden, weights, others) for steps in (_SHORT, _LONG))

    def at_length(name: str) -> float:
        low, high = getattr(short, name), getattr(long, name)
        return max(0.0, low + (high - low) * (length - _SHORT) / (_LONG - _SHORT))

    return LayerBytes(at_length("workspace"), at_length("forward"), at_length("backward"))


def bytes_of_forward(arguments: tuple[Any, ...]) -> LayerBytes:
    """Of a call of `mkldnn_rnn_layer`, by its arguments."""
    x, *weights = arguments[:5]
    others = tuple(tuple(each) if isinstance(each, (list, tuple)) else each for each in arguments[7:])
    shapes = tuple(tuple(weight.shape) for weight in weights)
    return layer_bytes(*x.shape, arguments[5].shape[-1], shapes, others)


def inside_backward(arguments: tuple[Any, ...]) -> int:
    """Of a call of `mkldnn_rnn_layer_backward`, whose arguments come in another order."""
    x, *weights = arguments[:5]
    reverse, mode, size, layers, biases, train, both_ways, batch_sizes, batch_first = arguments[13:22]
    others = (reverse, tuple(batch_sizes), mode, size, layers, biases, both_ways, batch_first, train)
    shapes = tuple(tuple(weight.shape) for weight in weights)
    return int(layer_bytes(*x.shape, arguments[5].shape[-1], shapes, others).backward)


def inside_forward(arguments: tuple[Any, ...]) -> int:
    """Of a call of `mkldnn_rnn_layer`."""
    return int(bytes_of_forward(arguments).forward)


def with_workspace(arguments: tuple[Any, ...], result: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The layer's results with a workspace as large as the library's: torch's rule for shapes makes an empty one."""
    size = int(bytes_of_forward(arguments).workspace)
    return (*result[:_WORKSPACE], result[_WORKSPACE].new_empty(size, dtype=torch.uint8))


def _measured(
    length: int, batch: int, inputs: int, hidden: int, shapes: tuple[tuple[int, ...], ...], others: tuple[Any, ...]
) -> LayerBytes:
    x, state = torch.zeros(length, batch, inputs), torch.zeros(1, batch, hidden)
    weights = [torch.zeros(shape) for shape in shapes]
    reverse, batch_sizes, mode, size, layers, biases, both_ways, batch_first, train = others
    forward = torch.ops.aten.mkldnn_rnn_layer
    backward = torch.ops.aten.mkldnn_rnn_layer_backward
    cpu = torch.device("cpu")
    with allocator_peak(cpu) as first:
        y, hy, cy, workspace = forward(x, *weights, state, state, *others)
    with allocator_peak(cpu) as second:
        gradients = backward(
            x, *weights, state, state, y, hy, cy, y, hy, cy,
            reverse, mode, size, layers, biases, train, both_ways, batch_sizes, batch_first, workspace,
        )  # fmt: skip
    made = sum(tensor.nbytes for tensor in (y, hy, cy, workspace))
    returned = sum(tensor.nbytes for tensor in tensors_in(gradients))
    return LayerBytes(workspace.nbytes, (first.bytes or made) - made, (second.bytes or returned) - returned)
