"""Attention inside documents: every algorithm against the definition, and packed against apart."""

import pytest
import torch
from agreement import assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops import attention, force_backend, rotary, rotary_attention
from verim.ops.attention.visible import spans_of

LENGTHS = st.sampled_from([1, 5, 12, 63, 64, 65, 130, 200])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def documents_of(batch: int, length: int, share: float, seed: int) -> Tensor:
    """Numbers that change at a `share` of the positions."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < share).cumsum(1)


@settings(max_examples=30, deadline=None)
@given(
    implementation=st.sampled_from(["kernel", "tiled", "auto"]),
    length=LENGTHS,
    batch=st.sampled_from([1, 2, 3]),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2)]),
    dim=st.sampled_from([3, 16, 40, 64]),
    share=st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]),
    window=st.sampled_from([None, 1, 17, 64]),
    dropout=st.sampled_from([0.0, 0.0, 0.4]),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(
    implementation: str,
    length: int,
    batch: int,
    heads: tuple[int, int],
    dim: int,
    share: float,
    window: int | None,
    dropout: float,
    biased: bool,
    seed: int,
) -> None:
    documents = documents_of(batch, length, share, seed)
    tensors = [drawn(batch, length, count, dim, seed=n) for n, count in enumerate((heads[0], heads[1], heads[1]))]
    bias = [drawn(1, heads[0], length, length, seed=4)] if biased else []

    def op(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        torch.manual_seed(5)
        options = {"window": window, "dropout": dropout, "implementation": implementation, "documents": documents}
        return attention(q, k, v, bias=bias[0] if bias else None, **options)

    assert_agrees(op, [*tensors, *bias], tolerance=5e-6, terms=3 + dim / 8)


@pytest.mark.parametrize("implementation", ["kernel", "tiled", "reference"])
def test_packed_is_apart(implementation: str) -> None:
    """Documents behind each other give what each gives by itself, with their gradients."""
    sizes = [1, 70, 3, 129, 64, 1]
    q, k, v = (drawn(1, sum(sizes), 2, 16, seed=n).requires_grad_() for n in range(3))
    documents = torch.repeat_interleave(torch.tensor([7, 8, 9, 2, 3, 4]), torch.tensor(sizes))[None]
    chosen = "auto" if implementation == "reference" else implementation
    with force_backend("reference" if implementation == "reference" else "auto"):
        packed = attention(q, k, v, documents=documents, implementation=chosen)
        apart = torch.cat([attention(*parts) for parts in zip(*(t.split(sizes, 1) for t in (q, k, v)), strict=True)], 1)
        gradient = drawn(*packed.shape, seed=9)
        of_packed = torch.autograd.grad(packed, (q, k, v), gradient)
        of_apart = torch.autograd.grad(apart, (q, k, v), gradient)
    torch.testing.assert_close(packed, apart, rtol=2e-5, atol=2e-6)
    for one, other in zip(of_packed, of_apart, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.sampled_from([0.02, 0.2]), st.integers(0, 1000))
def test_with_rotation_inside_the_kernel(length: int, share: float, seed: int) -> None:
    """Rotated by their places in the row: distances within a document are what they are."""
    documents = documents_of(2, length, share, seed).int()
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, 16, 2) / 16)

    def op(qkv: Tensor) -> Tensor:
        return rotary_attention(qkv, angles.cos().to(qkv), angles.sin().to(qkv), documents=documents)

    assert_agrees(op, [drawn(2, length, 3, 2, 16, seed=seed)], tolerance=5e-6, terms=6)
    qkv = drawn(2, length, 3, 2, 16, seed=seed)
    q, k = rotary(qkv[:, :, :2].flatten(2, 3), angles.cos(), angles.sin()).unflatten(2, (2, 2)).unbind(2)
    apart = attention(q, k, qkv[:, :, 2], documents=documents)
    torch.testing.assert_close(op(qkv), apart, rtol=2e-5, atol=2e-6)


def test_spans_are_runs_of_equal_numbers() -> None:
    firsts, ends = spans_of(torch.tensor([[0, 0, 1, 1, 1, 0], [5, 4, 3, 3, 3, 3]]))
    assert firsts.tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 2, 2, 2, 2]]
    assert ends.tolist() == [[2, 2, 5, 5, 5, 6], [1, 2, 6, 6, 6, 6]]
    assert spans_of(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 2, 0)


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        (torch.zeros(2, 5), {}, r"argument documents is torch\.float32 of shape \(2, 5\)"),
        (torch.zeros(2, 4, dtype=torch.int64), {}, r"of shape \(2, 4\) .*expected .* of shape \(2, 5\)"),
        (torch.zeros(2, 5, dtype=torch.int64), {"causal": False}, "given with causal=False, 5 queries and 5 keys"),
        (torch.zeros(2, 5, dtype=torch.int64), {"implementation": "torch"}, "a bias, a window, documents"),
    ],
)
def test_what_cannot_be_is_refused(documents: Tensor, options: dict, message: str) -> None:
    q = drawn(2, 5, 2, 16)
    with pytest.raises(InputError, match=message):
        attention(q, q, q, documents=documents, **options)
    if "implementation" not in options:
        with pytest.raises(InputError, match=message):
            rotary_attention(drawn(2, 5, 3, 2, 16), drawn(5, 8), drawn(5, 8), documents=documents, **options)


def test_more_keys_than_queries_are_refused() -> None:
    with pytest.raises(InputError, match="5 queries and 9 keys"):
        attention(
            drawn(1, 5, 1, 8), drawn(1, 9, 1, 8), drawn(1, 9, 1, 8), documents=torch.zeros(1, 5, dtype=torch.int64)
        )
