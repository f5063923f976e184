"""S4D: the block form against the recurrence that defines it, and the discretisation against a matrix exponential."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from verim.errors import InputError
from verim.nn.mixers import MambaConfig, S4DConfig
from verim.nn.mixers.s4d import _expm1
from verim.nn.time_invariant import time_invariant_scan
from verim.ops import force_backend, selective_scan

each_kind = pytest.mark.parametrize("is_complex", [False, True])


def system(batch: int, length: int, channels: int, modes: int, is_complex: bool, seed: int = 0) -> list[Tensor]:
    """u, log_transition, weight, skip and an initial state, in float64."""
    torch.manual_seed(seed)
    kind = torch.complex128 if is_complex else torch.float64
    decay = torch.rand(channels, modes, dtype=torch.float64).mul(4).sub(4).exp()
    log_transition = torch.complex(-decay, torch.randn(channels, modes, dtype=torch.float64)) if is_complex else -decay
    weight, initial = torch.randn(channels, modes, dtype=kind), torch.randn(batch, channels, modes, dtype=kind)
    u, skip = torch.randn(batch, length, channels, dtype=torch.float64), torch.randn(channels, dtype=torch.float64)
    return [u, log_transition, weight, skip, initial]


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.to(torch.complex64 if tensor.is_complex() else torch.float32) for tensor in tensors]


def recurrence(u: Tensor, log_transition: Tensor, weight: Tensor, skip: Tensor, initial: Tensor) -> tuple[Any, Any]:
    h, outputs = initial, []
    for u_t in u.unbind(1):
        h = log_transition.exp() * h + u_t[..., None]
        outputs.append((weight * h).real.sum(-1) + skip * u_t)
    return torch.stack(outputs, 1), h


@each_kind
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    channels=st.integers(1, 4),
    modes=st.integers(1, 3),
    block=st.integers(1, 12),
    starts=st.booleans(),
)
def test_blocks_equal_the_recurrence(
    is_complex: bool, batch: int, length: int, channels: int, modes: int, block: int, starts: bool
) -> None:
    u, log_transition, weight, skip, initial = system(batch, length, channels, modes, is_complex)
    if starts:
        initial = torch.zeros_like(initial)
    expected, state = recurrence(u, log_transition, weight, skip, initial)
    with force_backend("reference"):
        y, final = time_invariant_scan(u, log_transition, weight, skip, None if starts else initial, block)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(final, state, rtol=1e-10, atol=1e-10)


@each_kind
def test_without_a_state_it_is_the_convolution_with_the_kernel(is_complex: bool) -> None:
    u, log_transition, weight, skip, _ = system(2, 70, 3, 4, is_complex)
    k = torch.arange(70)
    kernel = (weight[..., None] * (log_transition[..., None] * k).exp()).real.sum(1)
    expected = torch.fft.irfft(torch.fft.rfft(u, 140, dim=1) * torch.fft.rfft(kernel.T, 140, dim=0), 140, dim=1)
    with force_backend("reference"):
        y, _ = time_invariant_scan(u, log_transition, weight, skip)
    torch.testing.assert_close(y, expected[:, :70] + skip * u, rtol=1e-10, atol=1e-10)


@each_kind
@pytest.mark.parametrize(("length", "block"), [(1, 4), (7, 3), (8, 4)])
def test_gradients_of_the_block_form(is_complex: bool, length: int, block: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in system(2, length, 2, 2, is_complex)]
    with force_backend("reference"):
        assert torch.autograd.gradcheck(lambda *tensors: time_invariant_scan(*tensors, block), tensors)


@each_kind
@pytest.mark.parametrize("length", [31, 1000])
def test_float32_keeps_its_accuracy_over_long_sequences(is_complex: bool, length: int) -> None:
    """Also with modes that are gone after one step, whose powers underflow."""
    exact = system(1, length, 5, 4, is_complex)
    with torch.no_grad():
        exact[1][0, 0] *= 1e4
        exact[1][:, 1] *= 1e-3
    rough = in_float32(exact)
    weight = torch.randn(1, length, 5, dtype=torch.float64)
    for tensor in (*exact, *rough):
        tensor.requires_grad_()
    with force_backend("reference"):
        expected, _ = time_invariant_scan(*exact)
        expected_gradients = torch.autograd.grad(expected, exact, weight)
    y, _ = time_invariant_scan(*rough)
    gradients = torch.autograd.grad(y, rough, weight.float())
    for got, true in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert (got.to(true.dtype) - true).norm() <= 1e-5 * true.norm()


def test_it_is_mambas_scan_where_nothing_depends_on_the_input() -> None:
    torch.manual_seed(0)
    u, delta, A = torch.randn(2, 45, 6), torch.rand(6) / 5, -4 * torch.rand(6, 3)
    B, C, D = torch.randn(3), torch.randn(3), torch.randn(6)
    expected, state = selective_scan(
        u, delta.expand(2, 45, 6), A, B.expand(2, 45, 3), C.expand(2, 45, 3), D, return_state=True
    )
    y, final = time_invariant_scan(u, delta[:, None] * A, delta[:, None] * B * C, D)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(delta[:, None] * B * final, state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("initial", ["lin", "real"])
def test_weights_stand_for_the_zero_order_hold_of_the_continuous_system(initial: Any) -> None:
    """Held for Δ, h' = A h + B x, x' = 0 is exp of the matrix [[A, B], [0, 0]] Δ; y is twice the real part."""
    torch.manual_seed(0)
    mixer = S4DConfig(state=6, initial=initial).build(4).double()
    modes = 3 if initial == "lin" else 6
    n = torch.arange(modes)
    expected = -0.5 + 1j * math.pi * n if initial == "lin" else -(n + 1.0)
    for weight in (mixer.B, mixer.log_decay):
        torch.nn.init.normal_(weight)
    with torch.no_grad(), force_backend("reference"):
        log_transition, _ = mixer.system()
        delta = mixer.log_delta.exp().numpy()
        A = (log_transition / mixer.log_delta.exp()[:, None]).numpy()
        inputs = torch.randn(1, 12, mixer.inner, dtype=torch.float64)
        y, _ = time_invariant_scan(inputs, *mixer.system(), mixer.skip)
    fresh = S4DConfig(state=6, initial=initial).build(4).double()
    start = fresh.system()[0] / fresh.log_delta.exp()[:, None]
    torch.testing.assert_close(start, expected.to(start.dtype).expand_as(start), rtol=1e-6, atol=1e-6)
    B, C = (w.detach().numpy() if initial == "real" else w.detach().numpy() @ [1, 1j] for w in (mixer.B, mixer.C))
    for channel in (0, 5):
        held = np.zeros((modes + 1, modes + 1), dtype=complex)
        held[:modes, :modes], held[:modes, modes] = np.diag(A[channel]), B[channel]
        held = scipy.linalg.expm(held * delta[channel])
        h = np.zeros(modes)
        for t in range(12):
            h = held[:modes, :modes] @ h + held[:modes, modes] * inputs[0, t, channel].item()
            read = (C[channel] @ h).real * (2 if initial == "lin" else 1)
            assert y[0, t, channel].item() == pytest.approx(read + inputs[0, t, channel].item(), rel=1e-9, abs=1e-12)


def test_one_minus_the_exponential_is_exact_near_zero_and_far_away() -> None:
    scale = torch.logspace(-9, 1, 200, dtype=torch.float64)
    z = torch.complex(-scale, scale.flip(0))
    for value, tolerance in ((z, 1e-14), (-scale, 1e-15), (z.to(torch.complex64), 3e-7)):
        expected = torch.expm1(value.to(torch.complex128))
        error = _expm1(value).to(torch.complex128) - expected
        assert (error.abs() <= tolerance * expected.abs()).all()


class LargestTensor(TorchDispatchMode):
    """The entries of the largest tensor that any operator gives."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = result if isinstance(result, tuple | list) else [result]
        self.entries = max([self.entries, *(tensor.numel() for tensor in given if isinstance(tensor, Tensor))])
        return result


def test_states_of_all_positions_are_never_held() -> None:
    batch, length, channels, modes = 2, 640, 3, 8
    tensors = [
        t.to(torch.complex64 if t.is_complex() else torch.float32) for t in system(batch, length, channels, modes, True)
    ]
    with LargestTensor() as largest:
        y, _ = time_invariant_scan(*(tensor.requires_grad_() for tensor in tensors))
        y.square().sum().backward()
    assert largest.entries <= batch * length * channels


def test_s4d_holds_as_much_state_as_mamba_and_has_its_block() -> None:
    mamba, complex_, real = (c.build(12) for c in (MambaConfig(), S4DConfig(), S4DConfig(initial="real")))
    assert mamba.state_bytes(3, 9) == complex_.state_bytes(3, 9) == real.state_bytes(3, 9)
    shapes = {name: weight.shape for name, weight in mamba.named_parameters()}
    for name in ("into.weight", "convolution", "convolution_bias", "skip", "out.weight"):
        for s4d in (complex_, real):
            assert dict(s4d.named_parameters())[name].shape == shapes[name]


@pytest.mark.parametrize("initial", ["lin", "real"])
def test_halves_and_autocast_keep_the_state_in_float32(initial: Any) -> None:
    torch.manual_seed(0)
    mixer, x = S4DConfig(initial=initial).build(12), torch.randn(2, 40, 12)
    with torch.no_grad():
        expected, _ = mixer(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, state = mixer(x)
        assert state.modes.dtype in (torch.float32, torch.complex64)
        torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.02)
        y, state = mixer.bfloat16()(x.bfloat16())
        assert state.modes.dtype in (torch.float32, torch.complex64)
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("initial", "forward", "backward"),
    # a channel: 8 (complex) or 2 for each mode's step and 4 or 2 for reading it, backward 14 or 3 and 8 or 4;
    # D x 2 and 4; the convolution 2 · 4 and 4 · 4 + 1
    [("lin", 3 * (8 + 4) + 2 + 8, 3 * (14 + 8) + 4 + 17), ("real", 6 * (2 + 2) + 2 + 8, 6 * (3 + 4) + 4 + 17)],
)
def test_flops_of_s4d_by_hand(initial: Any, forward: int, backward: int) -> None:
    width, inner = 10, 20
    weights = width * 2 * inner + inner * width
    mixer = S4DConfig(state=6, initial=initial).build(width)
    assert mixer.flops(64) == (2 * weights + inner * forward, 4 * weights + inner * backward)


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", 0), ("state", 3), ("expand", 0), ("kernel", 0), ("initial", "legs"), ("delta_min", 0.0)],
)
def test_impossible_s4d_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{field}.*: got .*expected"):
        S4DConfig(**{field: value})
