"""The product of a few rows with a layer's weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from verim.ops import linear
from verim.ops.linear.cost import forward_cost
from verim.ops.linear.cpu import few_rows


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), inputs=st.integers(1, 70), outputs=st.integers(1, 40), biased=st.booleans())
def test_it_is_torchs_linear(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    bias = torch.randn(outputs) if biased else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(few_rows(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5, 20, 60])
def test_shapes_strides_and_what_is_not_fast_go_through(rows: int) -> None:
    weight, bias = torch.randn(6, 10), torch.randn(6)
    wide = torch.randn(rows, 1, 20)[..., ::2]
    torch.testing.assert_close(linear(wide, weight, bias), torch.nn.functional.linear(wide, weight, bias))
    assert linear(wide, weight, bias).shape == (rows, 1, 6)
    assert linear(wide.double(), weight.double()).dtype is torch.float64
    assert linear(wide.bfloat16(), weight.bfloat16()).dtype is torch.bfloat16
    turned = torch.randn(10, 6).t()
    torch.testing.assert_close(linear(wide, turned), wide @ turned.t())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(wide, weight).dtype is torch.bfloat16
    with pytest.raises(RuntimeError, match="shapes"):
        linear(wide, torch.randn(6, 9))


def test_gradients_are_recorded_and_operators_counted() -> None:
    x, weight = torch.randn(7, 10, requires_grad=True), torch.randn(6, 10, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is not None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert counter.get_total_flops() == forward_cost(7, 10, 6).flops


def test_a_nan_stays_in_its_row() -> None:
    x = torch.randn(5, 33)
    x[2, 32] = torch.nan
    missing = linear(x, torch.randn(9, 33)).isnan()
    assert missing[2].all() and not missing[[0, 1, 3, 4]].any()
