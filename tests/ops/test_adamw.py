"""AdamW's update and the norm of a gradient: the kernels against their definitions."""

import doctest
import importlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops import adamw, force_backend, gradient_norm
from verim.ops.adamw import BLOCK, AdamWRule, AdamWTensors, EightBitTensors, adamw_8bit, cpu, eight_bit
from verim.ops.adamw.codes import bounds, code, decode, encode, first_guess
from verim.ops.adamw.cost import norm_cost, update_cost

RULE = AdamWRule(0.01, 0.9, 0.95, 1e-8, 0.1, step=3)
SIZES = st.lists(st.integers(0, 50) | st.sampled_from([255, 256, 257, 16383, 16384, 16385, 40000]), max_size=5)


def tensors(size: int, seed: int = 0, scale: float = 1.0) -> AdamWTensors:
    generator = torch.Generator().manual_seed(1000 * seed + size)
    w, g, m, v = (torch.randn(size, generator=generator) for _ in range(4))
    return AdamWTensors(w, scale * g, scale * m, (scale * v) ** 2)


def copied(held: AdamWTensors, dtype: torch.dtype = torch.float32) -> AdamWTensors:
    return AdamWTensors(*(getattr(held, name).to(dtype, copy=True) for name in held.__slots__))


def in_bytes(held: AdamWTensors) -> EightBitTensors:
    return EightBitTensors(
        held.weight, held.gradient, *encode(held.average, signed=True), *encode(held.square.sqrt(), signed=False)
    )


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, scale=st.sampled_from([1e-4, 1.0, 1e4]), clipped=st.sampled_from([1.0, 0.03]))
def test_the_kernel_agrees_with_the_reference(sizes: list[int], scale: float, clipped: float) -> None:
    fast = [tensors(size, seed, scale) for seed, size in enumerate(sizes)]
    exact = [copied(held, torch.float64) for held in fast]
    gradients = [held.gradient.clone() for held in fast]
    rules = [replace(RULE, learning_rate=0.01 * (k + 1), step=k + 1) for k in range(len(sizes))]
    adamw(fast, rules, clipped)
    with force_backend("reference"):
        adamw(exact, rules, clipped)
    for held, expected, gradient in zip(fast, exact, gradients, strict=True):
        for name in ("weight", "average", "square"):
            torch.testing.assert_close(
                getattr(held, name).double(),
                getattr(expected, name),
                rtol=2e-6,
                atol=2e-6 * scale ** (name != "weight"),
            )
        assert torch.equal(held.gradient, gradient)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, scale=st.sampled_from([1e-8, 1.0, 1e8]))
def test_the_norm_agrees_with_float64(sizes: list[int], scale: float) -> None:
    gradients = [tensors(size, seed, scale).gradient for seed, size in enumerate(sizes)]
    norm = gradient_norm(gradients)
    exact = math.sqrt(sum(gradient.double().pow(2).sum().item() for gradient in gradients))
    assert norm.dtype is torch.float32 and norm.item() == pytest.approx(exact, rel=1e-6)
    halves = [gradient.bfloat16() for gradient in gradients]
    if sizes:
        assert gradient_norm(halves).item() == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_norm(bad: float) -> None:
    gradients = [torch.ones(100), torch.ones(20000)]
    gradients[1][17000] = bad
    assert not gradient_norm(gradients).isfinite()


def test_a_nan_stays_in_its_place() -> None:
    held = tensors(1000)
    held.gradient[77] = math.nan
    adamw([held], [RULE])
    for name in ("weight", "average", "square"):
        assert getattr(held, name).isnan().nonzero().tolist() == [[77]]


def test_other_types_and_strides_take_the_reference() -> None:
    held = tensors(600)
    other = AdamWTensors(*(getattr(held, name).clone().view(30, 20).T for name in held.__slots__))
    halves = copied(held, torch.bfloat16)
    adamw([held], [RULE])
    adamw([other], [RULE])
    with force_backend("reference"):
        adamw([halves], [RULE])
    torch.testing.assert_close(other.weight.T.reshape(-1), held.weight)
    torch.testing.assert_close(halves.weight.float(), held.weight, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kernel", ["adamw", "adamw_8bit", "gradient_norm"])
def test_threads_do_not_change_a_bit(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((cpu, "_UPDATE_NANOSECONDS"), (cpu, "_NORM_NANOSECONDS"), (eight_bit, "_NANOSECONDS")):
        monkeypatch.setattr(module, name, 1e6)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            held = [tensors(size) for size in (70000, 3, 20000)]
            if kernel == "gradient_norm":
                results.append([gradient_norm([one.gradient for one in held])])
                continue
            if kernel == "adamw":
                adamw(held, [RULE] * 3, 0.5)
            else:
                adamw_8bit([in_bytes(one) for one in held], [RULE] * 3, 0.5)
            results.append([one.weight for one in held])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(result, results[0], strict=True))


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_is_nearest_and_reaches_over_seven_decades(signed: bool) -> None:
    numbers = code(signed)
    assert len(numbers) == 256 and (np.diff(numbers) > 0).all() and numbers[-1] == 1 and 0 in numbers
    assert numbers[numbers > 0].min() < 6e-7
    x = torch.cat([torch.linspace(-1 if signed else 0, 1, 25601), torch.logspace(-9, 0, 2303), torch.ones(1)])
    codes, scales = encode(x, signed)
    decoded = decode(codes, scales, signed)
    for begin in range(0, len(x), BLOCK):
        block, scale = x[begin : begin + BLOCK], scales[begin // BLOCK].item()
        distance = (block[:, None] - scale * torch.from_numpy(numbers)).abs()
        if not signed:
            distance[block > 0, 0] = math.inf  # only zero is zero
        found = (block - decoded[begin : begin + BLOCK]).abs()
        torch.testing.assert_close(found, distance.amin(1), rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("signed", [True, False])
def test_the_first_guess_is_at_most_one_below(signed: bool) -> None:
    x = np.concatenate([np.linspace(-1, 1, 400001), np.logspace(-8, 0, 100001), bounds(signed)[:-1]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(2)), np.nextafter(x, np.float32(-2))])
    x = x if signed else x[x >= 0]
    exact = np.searchsorted(bounds(signed)[:-1], x)
    short = exact - first_guess(signed)[x.view(np.uint32) >> 16]
    assert set(short.tolist()) == {0, 1}


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_the_kernel_of_bytes_agrees_with_the_reference(sizes: list[int], scale: float) -> None:
    """Where a moment lies on the border of two codes, rounding decides: one in a thousand may be the next."""
    fast = [in_bytes(tensors(size, seed, scale)) for seed, size in enumerate(sizes)]
    exact = [in_bytes(tensors(size, seed, scale)) for seed, size in enumerate(sizes)]
    adamw_8bit(fast, [RULE] * len(fast), 0.5)
    with force_backend("reference"):
        adamw_8bit(exact, [RULE] * len(exact), 0.5)
    for one, other in zip(fast, exact, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-5, atol=1e-6)
        for name in ("average", "root"):
            apart = (getattr(one, name).int() - getattr(other, name).int()).abs()
            assert (apart <= 1).all() and apart.sum() <= 2 + apart.numel() / 1000
            torch.testing.assert_close(getattr(one, f"{name}_scales"), getattr(other, f"{name}_scales"))


def test_a_moment_that_is_not_zero_is_never_divided_as_zero() -> None:
    """A tiny entry beside a huge one: its root is rounded up, so that its update is small and not huge."""
    held = tensors(256)
    for tensor in (held.average, held.square):
        tensor.zero_()
    held.gradient.fill_(1e-9)
    held.gradient[0] = 1.0
    state, before = in_bytes(held), held.weight.clone()
    for step in range(1, 4):
        adamw_8bit([state], [replace(RULE, weight_decay=0.0, step=step)])
    assert (state.root > 0).all()
    assert (held.weight - before).abs().max() < 0.04


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bytes_do_not_hide_what_is_not_finite(bad: float) -> None:
    held = tensors(300)
    state = in_bytes(held)
    held.gradient[10] = bad
    adamw_8bit([state], [RULE])
    assert held.weight[10].isnan()
    assert not state.average_scales[0].isfinite() and state.average_scales[1].isfinite()


def test_wrong_input_is_named() -> None:
    held = tensors(8)
    with pytest.raises(InputError, match="got 1 weights and 2 rules"):
        adamw([held], [RULE, RULE])
    with pytest.raises(InputError, match=r"square is torch.float32 of shape \(7,\), expected torch.float32 of shape"):
        adamw([replace(held, square=torch.zeros(7))], [RULE])
    with pytest.raises(InputError, match=r"root is torch.float32 of shape \(8,\), expected torch.uint8"):
        adamw_8bit([replace(in_bytes(held), root=torch.zeros(8))], [RULE])


def test_the_example_in_the_docstring() -> None:
    module = importlib.import_module("verim.ops.adamw")
    outcome = doctest.testmod(module, extraglobs={"torch": torch})
    assert outcome.attempted and not outcome.failed


def test_costs_count_every_tensor_once() -> None:
    assert update_cost(10).bytes == 10 * 4 * 7 and norm_cost(10).bytes == 40
    assert norm_cost(10).flops == 20 and update_cost(10).flops == 150
