"""The prefix sum: torch's cumsum is its definition, and the compiled version is compared with it."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agreement import Allocations, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import force_backend, prefix_sum, workers
from verim.ops.prefix_sum import cpu
from verim.ops.prefix_sum.reference import prefix_sum_reference

prefix_sum_module = sys.modules["verim.ops.prefix_sum"]  # the name in verim.ops is the function


@pytest.fixture
def blocks_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An axis is cut into blocks of 512 entries, and every call is worth all threads."""
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)
    monkeypatch.setattr(cpu, "BLOCK", 512)
    monkeypatch.setattr(cpu, "STREAMED", 0)  # where rows begin at 64 bytes
    monkeypatch.setattr(cpu, "CUT", 512)
    monkeypatch.setattr(prefix_sum_module, "_SMALL", 0)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def assert_is_sum(x: Tensor, dim: int, exclusive: bool = False, reverse: bool = False) -> None:
    """The compiled version, at any size, against torch in float64: each value rounded once, as torch's are."""
    with poisoned_memory():
        got = cpu.prefix_sum_forward(x, dim % x.dim(), exclusive, reverse)
    if not x.is_floating_point():
        assert torch.equal(got, prefix_sum_reference(x, dim, exclusive, reverse))
        return
    expected = prefix_sum_reference(x.double(), dim, exclusive, reverse)
    assert got.shape == expected.shape and got.dtype is x.dtype and got.is_contiguous()
    torch.testing.assert_close(got.double(), expected, rtol=6.1e-8, atol=1e-12)


def test_the_reference_has_the_gradients_of_its_sums() -> None:
    x = uniform(3, 4).double().requires_grad_()
    with force_backend("reference"):
        for how in ((0, False, False), (1, True, False), (1, False, True), (0, True, True)):
            assert torch.autograd.gradcheck(lambda t, how=how: prefix_sum(t, *how), x)
            assert torch.autograd.gradgradcheck(lambda t, how=how: prefix_sum(t, *how), x)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    outer=st.sampled_from([0, 1, 2, 3, 9]),
    length=st.sampled_from([0, 1, 2, 15, 16, 17, 33, 641]),
    inner=st.sampled_from([1, 2, 3, 4, 8, 12, 16, 37, 513]),
    exclusive=st.booleans(),
    reverse=st.booleans(),
)
def test_agrees_with_the_reference(outer: int, length: int, inner: int, exclusive: bool, reverse: bool) -> None:
    assert_is_sum(uniform(outer, length, inner), 1, exclusive, reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((3003,), 0), ((3, 1007, 4), 1), ((800, 7), 0), ((2, 150, 1040), 1)])
@pytest.mark.usefixtures("blocks_are_short")
def test_an_axis_cut_into_blocks_agrees(shape, dim: int, reverse: bool) -> None:
    assert_is_sum(uniform(*shape), dim, False, reverse)
    assert_is_sum(uniform(*shape), dim, True, reverse)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_integers_are_summed_as_int64(dtype: torch.dtype, exclusive: bool, reverse: bool) -> None:
    numbers = torch.arange(3 * 30_001).view(3, 30_001)
    x = (numbers * 7919 % 11 < 4) if dtype is torch.bool else numbers.square() * 2**40  # which overflows
    got = prefix_sum(x, 1, exclusive, reverse)
    assert got.dtype is torch.int64 and torch.equal(got, prefix_sum_reference(x, 1, exclusive, reverse))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.complex64])
def test_what_has_no_kernel_is_handed_on_to_torch(dtype: torch.dtype) -> None:
    x = (uniform(2, 70_000) * 5).to(dtype)
    assert torch.equal(prefix_sum(x), x.cumsum(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_wide_and_rounded_once(dtype: torch.dtype) -> None:
    x = uniform(280_000).to(dtype).div(8).requires_grad_()
    y = prefix_sum(x)
    assert torch.equal(y, x.double().cumsum(0).to(dtype))
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert gradient.dtype is dtype and gradient[-1] == 1 and gradient[0] == torch.tensor(280_000.0).to(dtype)


def test_autocast_sums_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert prefix_sum(uniform(280_000).bfloat16()).dtype is torch.float32


def test_the_sum_of_many_is_as_exact_as_torchs() -> None:
    x = uniform(1 << 22)
    error = (prefix_sum(x).double() / x.double().cumsum(0) - 1).abs().max()
    assert error < 6.1e-8  # half a unit in the last place


def test_any_layout() -> None:
    x = uniform(60, 1, 2400)
    for view in (x.transpose(0, 2), x.expand(60, 2, 2400), x[::3, :, ::2], x.squeeze(1).t(), x.flip(0).squeeze(1)):
        for dim in range(view.dim()):
            assert_is_sum(view, dim, exclusive=True, reverse=True)
    assert torch.equal(prefix_sum(torch._neg_view(x), 0), -prefix_sum(x, 0))  # whose minus is not in memory


def test_a_number_is_its_own_sum() -> None:
    assert prefix_sum(torch.tensor(3.0)) == 3 and prefix_sum(torch.tensor(3.0), exclusive=True) == 0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("value", "after"), [(math.nan, math.nan), (math.inf, math.inf)])
def test_what_is_not_finite_reaches_only_what_comes_after(value: float, after: float, reverse: bool) -> None:
    x = torch.ones(1_200_000)
    x[100_000] = value
    y = prefix_sum(x, reverse=reverse)
    before, behind = (y[100_001:], y[:100_001]) if reverse else (y[:100_000], y[100_000:])
    assert before.isfinite().all()
    torch.testing.assert_close(behind, torch.full_like(behind, after), equal_nan=True)


@pytest.mark.parametrize("dim", [0, 1])
def test_gradients_are_scans_of_the_gradient_and_have_gradients(dim: int) -> None:
    x, weight = uniform(400, 400).requires_grad_(), uniform(400, 400, seed=1).requires_grad_()
    loss = (prefix_sum(x, dim, exclusive=True) * weight).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(gradient, prefix_sum_reference(weight, dim, True, True))
    (again,) = torch.autograd.grad((gradient * x).sum(), weight)
    torch.testing.assert_close(again, prefix_sum_reference(x, dim, True, False))


@pytest.mark.usefixtures("blocks_are_short")
@pytest.mark.parametrize("patience", [0, cpu.PATIENCE])
def test_the_bits_depend_neither_on_the_threads_nor_on_the_callers(patience: int, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "PATIENCE", patience)
    inputs = [(uniform(30_000), 0), (uniform(40, 700), 1), (uniform(700, 40), 0), (uniform(30, 600), 0)]
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append([prefix_sum(x, dim) for x, dim in inputs])
        with ThreadPoolExecutor(4) as callers:
            runs.extend(callers.map(lambda _: [prefix_sum(x, dim) for x, dim in inputs], range(8)))
    finally:
        torch.set_num_threads(before)
    assert len(runs) == 11
    for run in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(runs[0], run, strict=True))


def test_memory_is_the_result_and_little_else() -> None:
    for x, dim in ((uniform(1 << 20), 0), (uniform(1024, 1024), 0), (uniform(1024, 1024), 1)):
        with Allocations() as allocations:
            prefix_sum(x, dim)
        assert x.numel() <= sum(allocations.sizes) <= 1.1 * x.numel()


@pytest.mark.parametrize("shape", [(8, 4), (300, 300)])
@pytest.mark.parametrize("dim", [2, -3, 0.0, None])
def test_a_wrong_axis_is_named(shape, dim) -> None:
    with pytest.raises(InputError, match=r"prefix_sum: argument dim is .* an axis of x.*from -2 to 1"):
        prefix_sum(uniform(*shape), dim)


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(InputError, match="prefix_sum: argument x is list, expected a tensor"):
        prefix_sum([1, 2])
