"""A convolution as a matrix product (im2col), and where each of the two lies on the roofline.

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006): every
patch that the kernel sees becomes a column, and the convolution a product of the weights, O × C·k·l, with the columns,
C·k·l × H'·W'. The FLOPs are the same; the columns hold every input about k·l/stride² times, and are written and read.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from verim.anatomy.ceilings import Ceilings


@dataclass(frozen=True)
class Lowering:
    """The cost of a convolution, direct and by columns: `flops` of both, a multiply-add is 2; bytes moved by each.

    `direct_bytes`: input and weights read, output written. `columns_bytes`: the input read and the columns written,
    then columns and weights read, and the output written.
    """

    flops: int
    direct_bytes: int
    columns_bytes: int

    @property
    def direct_intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.direct_bytes

    @property
    def columns_intensity(self) -> float:
        """FLOPs a byte, making the columns included."""
        return self.flops / self.columns_bytes

    def attainable(self, ceilings: Ceilings, dtype: str = "float32") -> tuple[float, float]:
        """The most FLOP/s under the roof, direct and by columns."""
        peak = ceilings.flops_per_second(dtype)
        direct, columns = (
            min(peak, self.flops / size * ceilings.bytes_per_second(size))
            for size in (self.direct_bytes, self.columns_bytes)
        )
        return direct, columns


def convolve_by_columns(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "out channels k l"],
    stride: int = 1,
    padding: int = 0,
) -> Float[Tensor, "batch out height_out width_out"]:
    """What `torch.nn.functional.conv2d` computes, as one matrix product."""
    size = weight.shape[2:]
    columns = functional.unfold(x, tuple(size), padding=padding, stride=stride)
    height = (x.shape[2] + 2 * padding - size[0]) // stride + 1
    return torch.matmul(weight.flatten(1), columns).unflatten(2, (height, -1))


def lowering(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "out channels k l"],
    stride: int = 1,
    padding: int = 0,
) -> Lowering:
    """The cost of convolving `x`, from shapes alone (tensors of the meta device will do)."""
    height, width = (
        (along + 2 * padding - kernel) // stride + 1
        for along, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    places, patch = x.shape[0] * height * width, weight[0].numel()
    output, columns = places * weight.shape[0], places * patch
    direct = x.numel() + weight.numel() + output
    return Lowering(2 * output * patch, direct * x.element_size(), (direct + 2 * columns) * x.element_size())
