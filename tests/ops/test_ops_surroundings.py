"""Ops among other parts of torch: fake tensors, transformations, NaN, and arguments that are no tensors."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from verim.errors import InputError
from verim.ops import (
    attention,
    backend,
    linear_cross_entropy,
    linear_recurrence,
    prefix_sum,
    selective_scan,
    state_space_dual,
    wkv,
)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


OPS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "prefix_sum": (lambda x: prefix_sum(x, 0), [normal(600, 500)]),
    "linear_recurrence": (linear_recurrence, [normal(2, 9, 5).sigmoid(), normal(2, 9, 5)]),
    "wkv": (wkv, [normal(2, 9, 5), normal(2, 9, 5), normal(5).exp(), normal(5)]),
    "selective_scan": (
        selective_scan,
        [normal(2, 9, 5), normal(2, 9, 5).sigmoid(), -normal(5, 4).exp(), normal(2, 9, 4), normal(2, 9, 4)],
    ),
    "state_space_dual": (
        state_space_dual,
        [normal(2, 9, 2, 5), normal(2, 9, 2).sigmoid(), -normal(2).exp(), normal(2, 9, 1, 4), normal(2, 9, 1, 4)],
    ),
    "attention": (attention, [normal(2, 20, 2, 8), normal(2, 20, 2, 8), normal(2, 20, 2, 8)]),
}
each_op = pytest.mark.parametrize(("op", "tensors"), OPS.values(), ids=OPS)


@each_op
def test_fake_tensors_outside_their_mode_give_fake_results(op: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor).requires_grad_() for tensor in tensors]
    y = op(*fakes)
    assert y.shape == op(*tensors).shape and type(y) is type(fakes[0])
    assert all(gradient.shape == fake.shape for gradient, fake in zip(torch.autograd.grad(y.sum(), fakes), fakes))  # noqa: B905


@each_op
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own derivatives use it
def test_forward_mode_derivatives_are_those_of_the_definition(op: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    backend._warn_of_transform.cache_clear()
    step = 1e-3
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(tensor, torch.ones_like(tensor)) for tensor in tensors]
        with pytest.warns(UserWarning, match=r"the plain PyTorch reference runs"):
            y = op(*duals)
        tangent = forward_ad.unpack_dual(y).tangent
    ahead, behind = (op(*(tensor + sign * step for tensor in tensors)) for sign in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=2e-2, atol=2e-2)


@each_op
def test_transformations_of_functions_run_the_reference(op: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gradient = torch.func.grad(lambda first: op(first, *tensors[1:]).square().sum())(tensors[0])
        batched = torch.func.vmap(lambda first: op(first, *tensors[1:]))(torch.stack([tensors[0], tensors[0]]))
    leaf = tensors[0].clone().requires_grad_()
    expected = op(leaf, *tensors[1:])
    torch.testing.assert_close(batched[1], expected.detach(), rtol=1e-4, atol=1e-4)
    (own,) = torch.autograd.grad(expected.square().sum(), leaf)
    torch.testing.assert_close(gradient, own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [1, 4, 17, 70])
@pytest.mark.parametrize("which", ["q", "k", "v", "scale"])
def test_attention_does_not_swallow_nan(length: int, which: str) -> None:
    tensors = {name: normal(1, length, 1, 16) for name in "qkv"}
    scale = None
    if which == "scale":
        scale = float("nan")
    else:
        tensors[which][0, 0, 0, 0] = torch.nan
    for implementation in ("auto", "kernel", "tiled", "torch"):
        y = attention(**tensors, scale=scale, implementation=implementation)
        seen = y[0, :, 0].isnan().any(-1)
        assert seen[0] and (which == "q" or seen.all()), implementation


def test_an_expanded_mask_stays_as_small_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    q = normal(2, 64, 4, 16)
    padding = (torch.arange(64) < 50).view(1, 1, 1, 64)
    sizes: list[int] = []
    made = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda t, **options: (sizes.append(t.numel()), made(t, **options))[1])
    expanded = attention(q, q, q, causal=False, bias=padding.expand(2, 4, 64, 64))
    assert sizes and max(sizes) == 64
    assert torch.equal(expanded, attention(q, q, q, causal=False, bias=padding))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_recurrence(None, None), "linear_recurrence: argument .* is a NoneType, expected a tensor"),
        (lambda: wkv([1.0], [1.0], [1.0], [1.0]), "wkv: argument k is a list, expected a tensor"),
        (lambda: selective_scan(*[[1.0]] * 5), "selective_scan: argument u is a list, expected a tensor"),
        (lambda: attention([1.0], [1.0], [1.0]), "attention: argument q is a list, expected a tensor"),
        (lambda: linear_cross_entropy(None, None, None), "argument hidden is a NoneType, expected a tensor"),
        (lambda: attention(*[normal(1, 2, 1, 4)] * 3, window=2.5), "argument window is 2.5, expected a whole number"),
        (lambda: attention(*[normal(1, 2, 1, 4)] * 3, window=True), "argument window is True, expected a whole"),
    ],
)
def test_what_is_no_tensor_is_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_window_wider_than_any_number_of_keys_hides_nothing() -> None:
    q = normal(1, 20, 1, 8)
    assert torch.equal(attention(q, q, q, window=2**70), attention(q, q, q))
