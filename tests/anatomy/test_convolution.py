"""Convolutions as matrix products: equal to torch's, and their cost as counted."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from verim.anatomy import Ceilings
from verim.anatomy.convolution import convolve_by_columns, lowering

SHAPES = [
    ((2, 3, 8, 8), (4, 3, 3, 3), 1, 1),
    ((1, 4, 9, 7), (5, 4, 3, 2), 2, 0),
    ((2, 6, 5, 5), (3, 6, 1, 1), 1, 0),
    ((1, 1, 6, 10), (2, 1, 5, 5), 3, 2),
]


@pytest.mark.parametrize(("of_x", "of_weight", "stride", "padding"), SHAPES, ids=["same", "strided", "1x1", "sparse"])
def test_columns_give_what_the_convolution_gives(
    of_x: tuple[int, ...], of_weight: tuple[int, ...], stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(of_x, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(of_weight, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        expected = functional.conv2d(x, weight, stride=stride, padding=padding)
    found = convolve_by_columns(x, weight, stride, padding)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (x, weight)),
        torch.autograd.grad(expected.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    cost = lowering(x, weight, stride, padding)
    assert cost.flops == counter.get_total_flops()
    assert cost.direct_bytes == 8 * (x.numel() + weight.numel() + expected.numel())
    columns = functional.unfold(x, tuple(of_weight[2:]), padding=padding, stride=stride)
    assert cost.columns_bytes == cost.direct_bytes + 8 * 2 * columns.numel()


def test_columns_lie_further_left_on_the_roofline() -> None:
    x, weight = torch.empty(8, 64, 32, 32, device="meta"), torch.empty(64, 64, 3, 3, device="meta")
    cost = lowering(x, weight, padding=1)
    assert cost.flops == 2 * 8 * 64 * 32 * 32 * 64 * 9
    assert cost.columns_intensity < cost.direct_intensity / 5  # each input is in nine columns, written and read
    ceilings = Ceilings("cpu", 1, {"float32": 1e11}, ((2**30, 1e9),), 1e-6)
    direct, columns = cost.attainable(ceilings)
    assert direct == 1e11 and columns == pytest.approx(1e9 * cost.columns_intensity)  # compute here, memory there
