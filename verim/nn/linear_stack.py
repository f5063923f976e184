"""Matrices of the same shape in one parameter: what `nn.Linear` is, once for each expert."""

import torch
from torch import nn


class LinearStack(nn.Module):
    """`count` matrices without biases, `weight` [count, out_features, in_features], drawn from N(0, 1 / in_features).

    It holds them alone, so that initial values and optimisers know the fan-in of the stack as they know that of an
    `nn.Linear`; `verim.nn.experts` multiplies with them.
    """

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features))
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, in_features={self.in_features}, out_features={self.out_features}"


Matrix = nn.Linear | LinearStack
"""A layer's matrices, one or a stack: `in_features` is their fan-in, `weight` [..., out_features, in_features]."""
