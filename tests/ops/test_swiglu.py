import math

import pytest
import torch
from agreement import assert_agrees, output_and_gradients, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops import swiglu
from verim.ops.swiglu import cpu
from verim.ops.swiglu.reference import swiglu_reference


def packed(rows, hidden, scale=1.0):
    generator = torch.Generator().manual_seed(rows * 1000 + hidden)
    return scale * torch.randn(rows, 2 * hidden, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 3, 63, 64, 65, 200]),
    hidden=st.integers(1, 50) | st.sampled_from([85, 341]),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_the_kernel_agrees_with_the_reference(rows, hidden, scale):
    assert_agrees(swiglu, [packed(rows, hidden, scale)])


def test_the_reference_has_the_derivatives_of_its_formula():
    x = packed(3, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(swiglu_reference, x)
    assert torch.autograd.gradgradcheck(swiglu_reference, x)


def test_gates_that_are_wide_open_and_shut():
    x = torch.tensor([[1e4, -1e4, 200.0, -200.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0]], requires_grad=True)
    y, gradient = output_and_gradients(swiglu, [x])
    assert torch.allclose(y, torch.tensor([[2e4, 0.0, 800.0, 0.0, 0.0]]))
    assert gradient.isfinite().all()


def test_leading_dimensions_and_strides_do_not_matter():
    x = packed(24, 20)
    expected = output_and_gradients(swiglu, [x.requires_grad_()])
    other = x.detach().T.contiguous().T.requires_grad_()
    for got, want in zip(output_and_gradients(swiglu, [other]), expected, strict=True):
        assert torch.equal(got, want)
    assert torch.equal(swiglu(x.detach().view(2, 3, 4, 40)).view(24, 20), expected[0])


@pytest.mark.parametrize("place", [0, 19, 20, 39])
def test_a_nan_stays_in_its_place(place):
    x = packed(2, 20)
    x[1, place] = math.nan
    y, gradient = output_and_gradients(swiglu, [x.requires_grad_()])
    assert y.isnan().nonzero().tolist() == [[1, place % 20]]
    assert gradient[1, place % 20].isnan() and gradient.isnan().sum() <= 2


def test_without_gradients_the_output_is_the_same():
    x = packed(5, 33)
    with poisoned_memory(), torch.no_grad():
        plain = swiglu(x)
    assert torch.equal(plain, swiglu(x.requires_grad_()))


def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(cpu, "_FORWARD_NANOSECONDS", 1e9)
    monkeypatch.setattr(cpu, "_BACKWARD_NANOSECONDS", 1e9)
    x, before, results = packed(1000, 40).requires_grad_(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(output_and_gradients(swiglu, [x]))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(result, results[0], strict=True))


def test_a_second_derivative_is_refused_not_wrong():
    x = packed(2, 4).requires_grad_()
    with pytest.raises(InputError, match="second derivative"):
        torch.autograd.grad(swiglu(x).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), "argument gate_and_value is torch.int64"),
        (torch.zeros(()), r"of shape \(\)"),
        (torch.zeros(2, 5), "has 5 channels, expected an even number"),
        (torch.zeros(2, 0), "has 0 channels"),
    ],
)
def test_wrong_input_is_named(x, message):
    with pytest.raises(InputError, match=message):
        swiglu(x)
