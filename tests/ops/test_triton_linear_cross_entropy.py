"""The linear cross entropy with its Triton kernel: on a CUDA device, elsewhere in Triton's interpreter."""

import importlib
import os
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from agreement import Allocations, assert_agrees, interpreted, poisoned_memory

from verim.ops import force_backend, linear_cross_entropy

pytest.importorskip("triton")
from triton_compilation import assert_compiles

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch's deterministic mode refuses products
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-5 if DEVICE == "cuda" else 5e-6
gpu = importlib.import_module("verim.ops.linear_cross_entropy.gpu")


def on_triton():
    return nullcontext() if DEVICE == "cuda" else interpreted()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def problem(rows, width, vocab):
    targets = torch.arange(rows, device=DEVICE) * 7 % vocab
    targets[2::5] = -100
    return [normal(rows, width), normal(vocab, width, seed=1), normal(vocab, seed=2)], targets


OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1, "reduction": "sum"},
    "capped": {"softcap": 2.5, "reduction": "none"},
    "with everything": {"label_smoothing": 0.2, "softcap": 4.0, "z_loss": 0.01, "reduction": "none"},
    "penalised": {"z_loss": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("buffer", [1, 33 * 3, 1 << 20])
def test_agrees_with_the_reference(options, buffer):
    tensors, targets = problem(7, 12, 33)

    def op(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, targets, bias=bias, **options)

    with on_triton(), patch.object(gpu, "_BUFFER", buffer), patch.object(gpu, "_BLOCK", 16):
        assert_agrees(op, tensors, tolerance=TOLERANCE)


@pytest.mark.parametrize(("rows", "width", "vocab"), [(1, 1, 1), (3, 5, 4099), (0, 3, 5)])
def test_shapes(rows, width, vocab):
    (hidden, weight, _), targets = problem(rows, width, vocab)
    with on_triton():
        assert_agrees(lambda *t: linear_cross_entropy(*t, targets, reduction="sum"), [hidden, weight], TOLERANCE)


def test_tensors_that_do_not_lie_side_by_side():
    tensors, targets = problem(6, 4, 9)
    tensors = [normal(4, 3, 2).mT.movedim(0, 2), normal(4, 9).t(), normal(1).expand(9)]
    targets = torch.stack([targets, targets], 1)[:, 0].view(2, 3)
    with on_triton():
        assert_agrees(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, reduction="none"), tensors, TOLERANCE)


def test_what_an_ignored_row_holds_reaches_nothing():
    tensors, targets = problem(6, 4, 9)
    tensors[0][2] = torch.nan
    with on_triton():
        assert_agrees(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b), tensors, TOLERANCE)


@pytest.mark.skipif(DEVICE == "cpu", reason="on the CPU the public function runs another kernel's checks")
def test_a_target_outside_the_vocabulary_gives_nan():
    tensors, targets = problem(6, 4, 9)
    targets[0] = 9
    assert linear_cross_entropy(*tensors[:2], targets, reduction="none").isnan().tolist() == [True] + [False] * 5


@pytest.mark.parametrize("weight_type", ["the same", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype, weight_type):
    (hidden, weight, _), targets = problem(7, 12, 33)
    tensors = [hidden.to(dtype), weight.to(dtype) if weight_type == "the same" else weight]

    def op(hidden, weight):
        return linear_cross_entropy(hidden, weight, targets, reduction="mean") / 1000

    tensors = [tensor.requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with on_triton():
        loss = op(*tensors)
        gradients = torch.autograd.grad(loss, tensors, torch.tensor(1000.0, device=DEVICE))
    with force_backend("reference"):
        right = op(*exact)
        expected = torch.autograd.grad(right, exact, torch.tensor(1000.0, device=DEVICE, dtype=torch.float64))
    torch.testing.assert_close(loss.double(), right, rtol=1e-5, atol=0)
    for tensor, got, wanted in zip(tensors, gradients, expected, strict=True):
        assert got.dtype is tensor.dtype
        assert (got.double() - wanted).norm() <= 2 * torch.finfo(dtype).eps * wanted.norm()


def test_tiny_gradients_do_not_vanish_in_float16():
    hidden, weight = normal(4, 8).half(), normal(50, 8, seed=1).half().requires_grad_()
    targets = torch.arange(4, device=DEVICE)

    def op(weight):
        losses = linear_cross_entropy(hidden.to(weight), weight, targets, reduction="none")
        return torch.autograd.grad(losses, weight, torch.full_like(losses, 1e-4))[0]

    with on_triton():
        got = op(weight)
    with force_backend("reference"):
        right = op(weight.detach().double().requires_grad_())
    assert (got.double() - right).norm() <= 2e-3 * right.norm()


def test_memory_is_that_of_a_piece():
    tensors, targets = problem(64, 2, 40)
    tensors = [tensor.requires_grad_() for tensor in tensors[:2]]
    with on_triton(), patch.object(gpu, "_BUFFER", 400), Allocations() as allocations:
        linear_cross_entropy(*tensors, targets).backward()
    assert max(allocations.sizes) <= 48 * 10 < 64 * 40


def test_the_same_bits_each_time():
    tensors, targets = problem(7, 12, 33)
    tensors = [tensor.requires_grad_() for tensor in tensors]

    def once():
        with on_triton(), poisoned_memory(), patch.object(gpu, "_BUFFER", 99):
            loss = linear_cross_entropy(*tensors[:2], targets, bias=tensors[2])
            return [loss, *torch.autograd.grad(loss, tensors)]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def launch_all():
    targets, dlosses = torch.empty(8, dtype=torch.int64), torch.empty(8)
    hidden, weight, bias = (torch.empty(shape, dtype=torch.bfloat16) for shape in ((8, 64), (5000, 64), (5000,)))
    options = -100, 0.1, 30.0, 0.1
    gpu.linear_cross_entropy_gradients(hidden, weight, bias, targets, dlosses, *options, True, True, True)
    halves, normalisers = (hidden.half(), weight.half()), torch.empty(8, 2)
    options = -100, 0.0, 0.0, 0.0, True, False, False
    gpu.linear_cross_entropy_backward(*halves, None, targets, normalisers, dlosses, *options)


@pytest.mark.slow
def test_compiles_for_gpus():
    assert_compiles(launch_all, {"_row"})
