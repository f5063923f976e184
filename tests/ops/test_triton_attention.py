"""The Triton kernels of attention: on a CUDA device at real sizes, elsewhere tiny, in Triton's interpreter."""

import importlib
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from agreement import Allocations, assert_agrees, interpreted, poisoned_memory

from verim.ops import attention, force_backend, rotary_attention

pytest.importorskip("triton")
from triton_compilation import assert_compiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = 128 if DEVICE == "cuda" else 16  # of the order of the kernels' tiles: lengths are counted in it
TOLERANCE = 2e-5 if DEVICE == "cuda" else 5e-6


kernel = partial(attention, implementation="kernel")


def on_triton():
    return nullcontext() if DEVICE == "cuda" else interpreted()


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def heads_of(length, keys, heads, kv_heads, dim, batch=1, scale=1.0):
    q = normal(batch, length, heads, dim, scale=scale)
    return [q, normal(batch, keys, kv_heads, dim, seed=1), normal(batch, keys, kv_heads, dim, seed=2)]


def agree(op, tensors, **options):
    with on_triton():
        assert_agrees(op, tensors, tolerance=TOLERANCE, **options)


CASES = {  # length, keys, heads, kv_heads, dim, options
    "one position": (1, 1, 1, 1, 1, {}),
    "whole tiles": (2 * TILE, 2 * TILE, 1, 1, 16, {}),
    "prime lengths, grouped heads": (2 * TILE + 5, 2 * TILE + 5, 4, 2, 20, {}),
    "a sequence goes on": (TILE + 3, 3 * TILE + 1, 1, 1, 8, {}),
    "one query of a long sequence": (1, 3 * TILE + 1, 2, 1, 8, {}),
    "queries that see nothing": (2 * TILE + 1, TILE + 3, 1, 1, 8, {}),
    "all keys": (TILE + 3, 2 * TILE, 1, 1, 33, {"causal": False}),
    "a window": (3 * TILE + 5, 3 * TILE + 7, 1, 1, 8, {"window": TILE + TILE // 2}),
    "a window narrower than a tile": (2 * TILE + 5, 2 * TILE + 5, 1, 1, 8, {"window": 3}),
    "a window on both sides": (3 * TILE + 5, 3 * TILE - 2, 1, 1, 8, {"window": TILE + 3, "causal": False}),
    "a negative scale": (TILE + 3, TILE + 3, 1, 1, 8, {"scale": -0.7}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_reference(case):
    *shape, options = case
    agree(lambda *tensors: kernel(*tensors, **options), heads_of(*shape))


@pytest.mark.parametrize("shape", [(2, 2, 0, 0), (1, 1, 0, 0), (2, 1, 0, 0), (1, 2, 1, 0), (2, 1, 0, 1), (1, 1, 1, 1)])
def test_a_bias_and_its_gradient(shape):
    length, keys = TILE + 3, TILE + 1
    bias = normal(*shape[:2], shape[2] or length, shape[3] or keys)
    bias[:, :, 0, : keys // 2] = -torch.inf
    with_bias = heads_of(length, keys, 2, 1, 8, batch=max(shape[0], 2 // shape[1]))
    agree(lambda q, k, v, bias: kernel(q, k, v, bias=bias), [*with_bias, bias])


def test_a_mask_that_hides_everything_from_some_queries():
    length = TILE + 3
    seen = torch.ones(length, length, dtype=torch.bool, device=DEVICE)
    seen[3] = False
    tensors = heads_of(length, length, 1, 1, 8)
    agree(lambda *t: kernel(*t, bias=seen, causal=False), tensors)
    with on_triton():
        assert not kernel(*tensors, bias=seen, causal=False)[:, 3].any()


def test_dropout_is_that_of_the_reference():
    def op(q, k, v, bias):
        torch.manual_seed(3)
        return kernel(q, k, v, bias=bias, dropout=0.3)

    length = TILE + 3
    agree(op, [*heads_of(length, length, 2, 1, 8, batch=2), normal(1, 2, length, length)])


def test_views_of_a_packed_tensor_and_transposed_gradients():
    length = TILE + 3
    packed = normal(1, length, 3, 2, 8)

    def op(packed):
        return kernel(*packed.unbind(2)).transpose(1, 3)

    agree(op, [packed])
    agree(
        lambda *t: kernel(*t),
        [packed[:, :, 0], packed[:, :, 1, :1].expand(1, length, 2, 8), packed.mT[:, :, 2, :8, :2].mT],
    )


def test_rotation_agrees_with_the_reference():
    length, dim = TILE + 3, 12
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, dim, 2) / dim)
    tables = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
    agree(lambda qkv: rotary_attention(qkv, *(table.to(qkv) for table in tables)), [normal(1, length, 3, 2, dim)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype):
    tensors = [tensor.to(dtype).requires_grad_() for tensor in heads_of(TILE + 3, TILE + 3, 2, 1, 16)]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with on_triton():
        got = kernel(*tensors)
        weight = normal(*got.shape).to(dtype)
        gradients = torch.autograd.grad(got, tensors, weight)
    with force_backend("reference"):
        expected = attention(*exact)
        theirs = torch.autograd.grad(expected, exact, weight.double())
    for mine, right in zip((got, *gradients), (expected, *theirs), strict=True):
        assert mine.dtype is dtype
        assert (mine.double() - right).norm() <= 2 * torch.finfo(dtype).eps * right.norm()


PACKINGS = {  # the sizes of documents, heads, kv_heads, options
    "documents of many tiles": ((2 * TILE + 5, 2 * TILE - 3), 1, 1, {}),
    "documents smaller than tiles, grouped heads": ((3, TILE - 3, 2, 1, TILE + 1), 2, 1, {}),
    "one that ends with a tile, and a window": ((2 * TILE, TILE + 3), 1, 1, {"window": TILE // 2}),
}


@pytest.mark.parametrize("case", PACKINGS.values(), ids=PACKINGS)
def test_documents_agree_with_the_reference(case):
    sizes, heads, kv_heads, options = case
    length = sum(sizes)
    one = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    documents = torch.stack([one, torch.arange(length) // (TILE + 2)]).to(DEVICE)
    tensors = heads_of(length, length, heads, kv_heads, 8, batch=2)
    agree(lambda *t: kernel(*t, documents=documents, **options), tensors)


def test_documents_beside_a_bias_and_dropout():
    def op(q, k, v, bias):
        torch.manual_seed(3)
        return kernel(q, k, v, bias=bias, dropout=0.3, documents=documents)

    length = 2 * TILE + 3
    documents = (torch.arange(length, device=DEVICE) // (TILE - 5)).expand(1, length)
    agree(op, [*heads_of(length, length, 1, 1, 8), normal(1, 1, length, length)])


def test_large_scores_do_not_overflow():
    agree(lambda *t: kernel(*t), heads_of(TILE + 3, TILE + 3, 1, 1, 8, scale=1e3), terms=1e3)


@pytest.mark.parametrize(("batch", "length", "keys"), [(0, 3, 3), (1, 0, 3), (1, 3, 0)])
def test_nothing_at_all(batch, length, keys):
    agree(lambda *t: kernel(*t, causal=False), heads_of(length, keys, 1, 1, 4, batch=batch))


def test_the_same_bits_each_time():
    length = 2 * TILE + 3
    tensors = [tensor.requires_grad_() for tensor in heads_of(length, length, 2, 1, 8)]

    def once():
        with on_triton(), poisoned_memory():
            out = kernel(*tensors)
            return [out, *torch.autograd.grad(out.square().sum(), tensors)]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_no_matrix_of_all_scores():
    length = 8 * TILE if DEVICE == "cuda" else 3 * TILE
    tensors = [tensor.requires_grad_() for tensor in heads_of(length, length, 1, 1, 4)]
    with on_triton(), Allocations() as allocations:
        kernel(*tensors).sum().backward()
    assert max(allocations.sizes) < length * length // 2


def launch_all():
    gpu = importlib.import_module("verim.ops.attention.gpu")
    q, k = (torch.empty(2, 256, heads, 16, dtype=torch.bfloat16) for heads in (4, 2))
    bias, options = q.new_empty(1, 1, 256, 256), (True, 100, 0.1, torch.tensor(1), 0.1)
    plain = (True, 0, 0.0, None, 0.1)
    out, logsumexp = gpu.attention_forward(q, k, k, bias, *options)
    gpu.attention_backward(q, k, k, bias, out, logsumexp, out, *options, True)
    spans = torch.zeros(2, 2, 256, dtype=torch.int32)
    gpu.attention_backward(
        q, k, k, None, *gpu.attention_forward(q, k, k, None, *plain, spans), out, *plain, False, spans
    )


@pytest.mark.slow
def test_compiles_for_gpus():
    assert_compiles(
        launch_all, {"_forward", "_prepare", "_backward_of_keys", "_backward_of_queries", "_backward_of_bias"}
    )
