"""The small elementwise ops in bfloat16 and float16: computed in float32 and rounded once; autocast is followed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from verim.ops import causal_conv1d, cross_entropy, force_backend, rms_norm, rotary, swiglu
from verim.ops.backend import FLOATS_ON_CPU, takes_fast_path

draw = torch.Generator().manual_seed(0)
TARGETS = torch.randint(20, (2, 9), generator=draw)
ANGLES = torch.randn(9, 10, generator=draw)
OPS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], bool]] = {  # op, shapes, float32 in autocast
    "causal_conv1d": (lambda x, *others: causal_conv1d(x, *others, activation="silu"), ((2, 9, 20), (20, 4)), False),
    "cross_entropy": (lambda logits: cross_entropy(logits, TARGETS), ((2, 9, 20),), True),
    "rms_norm": (rms_norm, ((2, 9, 20), (20,)), True),
    "rotary": (lambda x: rotary(x, ANGLES.cos(), ANGLES.sin()), ((2, 9, 3, 20),), False),
    "swiglu": (swiglu, ((2, 9, 20),), False),
}
each_op = pytest.mark.parametrize("name", OPS)


def tensors(name: str, kind: torch.dtype, others: torch.dtype) -> list[Tensor]:
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in OPS[name][1]]
    return [tensor.to(others if i else kind).requires_grad_() for i, tensor in enumerate(made)]


@each_op
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("parameters", ["halves", "float32"])
def test_halves_are_computed_in_float32_and_rounded_once(
    name: str, kind: torch.dtype, backend: str, parameters: str
) -> None:
    op = OPS[name][0]
    halves = tensors(name, kind, kind if parameters == "halves" else torch.float32)
    wide = [tensor.detach().float().requires_grad_() for tensor in halves]
    with force_backend(backend):
        got, expected = op(*halves), op(*wide)
    assert got.dtype is (torch.float32 if name == "cross_entropy" else kind)
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=0)
    gradients = zip(
        torch.autograd.grad(got.square().sum(), halves),
        torch.autograd.grad(expected, wide, (2 * got.detach()).float()),
        halves,
        strict=True,
    )
    for one, other, like in gradients:
        assert one.dtype is like.dtype
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-6, atol=1e-6)


@each_op
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_autocast_makes_norms_and_losses_float32_and_leaves_the_others(name: str, kind: torch.dtype) -> None:
    op, _, widened = OPS[name]
    given = tensors(name, kind, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(*given)
    assert y.dtype is (torch.float32 if widened else kind)
    torch.testing.assert_close(y, op(*given), check_dtype=False, rtol=0 if kind is torch.float32 else 4e-3, atol=0)


def test_the_state_of_a_convolution_in_halves_is_float32() -> None:
    x, weight = tensors("causal_conv1d", torch.bfloat16, torch.bfloat16)
    whole, final = causal_conv1d(x, weight, return_state=True)
    first, state = causal_conv1d(x[:, :5], weight, return_state=True)
    rest, last = causal_conv1d(x[:, 5:], weight, initial=state, return_state=True)
    assert state.dtype is last.dtype is torch.float32
    assert torch.equal(torch.cat([first, rest], 1), whole) and torch.equal(last, final)


@pytest.mark.filterwarnings("error")
def test_where_the_reference_is_the_fast_path_nothing_warns() -> None:
    class OnCuda:
        is_cpu, device, dtype = False, torch.device("cuda"), torch.float64

    assert not takes_fast_path("swiglu", OnCuda(), FLOATS_ON_CPU)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="swiglu has no fast version for torch.float64 on cpu"):
        assert not takes_fast_path("swiglu", torch.zeros(1, dtype=torch.float64), FLOATS_ON_CPU)
