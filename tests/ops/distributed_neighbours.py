"""Checks of what ranks tell their neighbours: the rows before a piece, attention by ring. See distributed_ranks.py."""

import math

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from verim.errors import InputError
from verim.ops.attention import attention
from verim.ops.causal_conv1d import causal_conv1d
from verim.ops.distributed import distributed_attention, distributed_causal_conv1d, ranks, rows_before, spans

WORLD = 4
CASES = ((True, None, "contiguous"), (True, None, "zigzag"), (False, None, "contiguous"), (True, 3, "contiguous"))


def own(whole: Tensor, order: str = "contiguous", piece: int | None = None) -> Tensor:
    length = whole.shape[1] // WORLD
    parts = spans(distributed.get_rank() if piece is None else piece, WORLD, length, order)  # type: ignore[arg-type]
    return torch.cat([whole[:, part.start : part.stop] for part in parts], 1)


def close(got: Tensor | None, expected: Tensor, tolerance: float = 1e-11) -> None:
    assert got is not None and got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


def rows_before_a_piece() -> None:
    """Pieces that are shorter than what is asked for, and empty ones; a rank that needs no gradient."""
    generator = torch.Generator().manual_seed(0)
    rank = distributed.get_rank()
    for lengths in ((3, 3, 3, 3), (5, 0, 1, 4), (0, 0, 2, 0)):
        whole = torch.randn(2, sum(lengths), 3, 2, generator=generator, dtype=torch.float64)
        weight = torch.randn(len(lengths), 2, sum(lengths), 3, 2, generator=generator, dtype=torch.float64)
        starts = [sum(lengths[:other]) for other in range(WORLD)]
        for count in (0, 1, 4, 20):
            piece = whole[:, starts[rank] : starts[rank] + lengths[rank]].clone().requires_grad_(rank != 1)
            before = rows_before(piece, count)
            first = max(0, starts[rank] - count)
            close(before, whole[:, first : starts[rank]], 0)
            (before * weight[rank][:, first : starts[rank]]).sum().backward()
            expected = torch.zeros_like(whole)
            for other, start in enumerate(starts):
                seen = slice(max(0, start - count), start)
                expected[:, seen] += weight[other][:, seen]
            if rank == 1:
                assert piece.grad is None
            else:
                close(piece.grad, expected[:, starts[rank] : starts[rank] + lengths[rank]])


def convolution() -> None:
    generator = torch.Generator().manual_seed(1)
    for length, kernel in ((12, 4), (4, 4), (8, 1)):
        x = torch.randn(2, length, 16, generator=generator, requires_grad=True)
        weight, bias = (torch.randn(16, *tail, generator=generator, requires_grad=True) for tail in ((kernel,), ()))
        g = torch.randn(2, length, 16, generator=generator)
        y = causal_conv1d(x, weight, bias, activation="silu")
        expected = torch.autograd.grad((y * g).sum(), (x, weight, bias))
        piece, *shared = (t.detach().clone().requires_grad_() for t in (own(x), weight, bias))
        got = distributed_causal_conv1d(piece, *shared, activation="silu")
        close(got, own(y), 1e-5)
        (got * own(g)).sum().backward()
        close(piece.grad, own(expected[0]), 1e-5)
        for tensor, gradient in zip(shared, expected[1:], strict=True):
            distributed.all_reduce(tensor.grad)
            close(tensor.grad, gradient, 1e-5)


def make(length: int, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values, and the gradient of the output."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, count, 8) for count in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def compare(length: int, heads: int, kv_heads: int, dtype: torch.dtype, case: tuple, tolerance: float) -> None:
    causal, window, order = case
    *whole, g = make(length, heads, kv_heads, dtype)
    exact = [tensor.double().requires_grad_() for tensor in whole]
    scale = 0.7 / math.sqrt(8)
    y = attention(*exact, causal=causal, window=window, scale=scale)
    expected = torch.autograd.grad(y, exact, g.double())
    pieces = [own(tensor, order).detach().requires_grad_() for tensor in whole]
    got = distributed_attention(*pieces, causal=causal, window=window, scale=scale, order=order)
    close(got, own(y, order), tolerance)
    got.backward(own(g, order))
    for piece, gradient in zip(pieces, expected, strict=True):
        close(piece.grad, own(gradient, order), tolerance)


def attention_by_ring() -> None:
    for case in CASES:
        compare(24, 4, 2, torch.float64, case, 1e-11)
        compare(8, 1, 1, torch.float64, case, 1e-11)
        compare(160, 2, 2, torch.float32, case, 2e-5)
    compare(8, 2, 1, torch.float64, (True, 100, "contiguous"), 1e-11)  # all that there is, over several ranks


def attention_in_halves() -> None:
    for case in CASES:
        compare(24, 4, 2, torch.bfloat16, case, 3e-2)


def what_attention_sends() -> None:
    """Pieces of keys and values that all ranks together send: n (n - 1) / 2 or n (n - 1) forward, twice backward."""
    for order, pieces in (("contiguous", WORLD * (WORLD - 1) // 2), ("zigzag", WORLD * (WORLD - 1))):
        q, k, v, g = (own(tensor, order) for tensor in make(24, 4, 2, torch.float32))
        sent = []
        whole_exchange = ranks.Ranks.exchange

        def counted(self, sends, receives, sent=sent, exchange=whole_exchange):
            sent.extend(tensor.numel() for tensor, _ in sends)
            return exchange(self, sends, receives)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks.Ranks, "exchange", counted)
            out = distributed_attention(q.requires_grad_(), k, v, order=order)
            forward = sum(sent)
            out.backward(g)
        totals = torch.tensor([forward, sum(sent) - forward])
        distributed.all_reduce(totals)
        piece = 2 * k.numel()
        assert totals.tolist() == [pieces * piece, 2 * pieces * piece], (order, totals, piece)


def attention_refuses() -> None:
    rank = distributed.get_rank()
    q, k, v, _ = (own(tensor) for tensor in make(20, 4, 2, torch.float64))
    with pytest.raises(InputError, match="got 5 positions with order 'zigzag', expected an even number"):
        distributed_attention(q, k, v, order="zigzag")
    with pytest.raises(InputError, match="expected one of contiguous, zigzag"):
        distributed_attention(q, k, v, order="sideways")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="disagree about the shape of q"):
        distributed_attention(*(pad(t, (0, 0, 0, 0, 0, rank // 3)) for t in (q, k, v)))
    with pytest.raises(InputError, match=r"rank 2 refused its arguments|got 5 queries and 4 keys"):
        distributed_attention(q, *((t[:, 1:] if rank == 2 else t) for t in (k, v)))
    with pytest.raises(InputError, match="expected None, or 'contiguous'"):
        distributed_attention(q[:, :4], k[:, :4], v[:, :4], window=2, order="zigzag")


def compile_kernels() -> None:
    x = torch.randn(1, 4, 16, requires_grad=True)
    causal_conv1d(x, torch.randn(16, 2, requires_grad=True), activation="silu").sum().backward()
    for kind in (torch.float32, torch.bfloat16):
        q = torch.randn(1, 40, 1, 8, dtype=kind, requires_grad=True)
        attention(q, q, q, implementation="kernel").sum().backward()
