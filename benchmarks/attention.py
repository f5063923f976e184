"""Attention against its peers: python benchmarks/attention.py [--threads 2] [--rounds 7] [--dtype float32]

All sides agree first, then take turns in one process, with freed blocks kept; medians. Causal, batch 1, 12 heads of 64
channels. Peers: torch's `scaled_dot_product_attention`, and up to 2048 positions the naive form, which holds all
scores; for the options at the end (a window, a bias, dropout) torch has no fused path on the CPU, and takes a mask.
The ceiling is the machine's rate of float32 matrix products; forward 4, backward 8 FLOPs a channel and visible pair.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from verim.ops import attention
from verim.ops.attention.visible import pairs
from verim.runtime.allocator import keep_freed_blocks

HEADS, DIM, NAIVE_UP_TO = 12, 64, 2048
Side = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    turned = (tensor.transpose(1, 2) for tensor in (q, k, v))
    product = torch.nn.functional.scaled_dot_product_attention
    return product(*turned, attn_mask=mask, dropout_p=dropout, is_causal=mask is None).transpose(1, 2)


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    scores = (q @ k.mT * DIM**-0.5).masked_fill(future, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def windowed(length: int, window: int) -> Tensor:
    positions = torch.arange(length)
    ahead = positions - positions[:, None]
    return (ahead <= 0) & (ahead > -window)


def matmul_rate() -> float:
    """FLOP/s of a float32 matrix product, the best of five."""
    matrix, times = torch.randn(1536, 1536), []
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - began)
    return 2 * 1536**3 / min(times)


def compare(title: str, length: int, sides: dict[str, Side], dtype: torch.dtype, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    given = [torch.randn(1, length, HEADS, DIM).to(dtype).requires_grad_() for _ in range(3)]
    gradient = torch.randn(1, length, HEADS, DIM).to(dtype)
    if not title.endswith("dropout"):
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        expected, *others = (side(*given) for side in sides.values())
        wanted = torch.autograd.grad(expected, given, gradient)
        for out in others:
            for one, other in zip((out, *torch.autograd.grad(out, given, gradient)), (expected, *wanted), strict=True):
                assert (one - other).norm() < tolerance * other.norm(), f"{title}: a peer disagrees"

    def forward(side: Side) -> None:
        with torch.no_grad():
            side(*given)

    def both(side: Side) -> None:
        torch.autograd.grad(side(*given), given, gradient)

    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    rates = []
    for _ in range(options.rounds):
        rates.append(matmul_rate())
        for name, side in sides.items():
            for kept, work in zip(times[name], (forward, both), strict=True):
                began = time.perf_counter()
                work(side)
                kept.append(time.perf_counter() - began)
    flops = 4 * DIM * HEADS * pairs(length, length, True, options.window if "window" in title else 0)
    ours = [statistics.median(kept) for kept in times["verim"]]
    for name, kept in times.items():
        theirs = [statistics.median(side) for side in kept]
        ceiling = [
            part * flops / seconds / statistics.median(rates) for part, seconds in zip((1, 3), theirs, strict=True)
        ]
        print(
            f"{title:24} {name:8} forward {1e3 * theirs[0]:8.2f} ({theirs[0] / ours[0]:5.2f}×, {ceiling[0]:4.0%})   "
            f"forward and backward {1e3 * theirs[1]:8.2f} ({theirs[1] / ours[1]:5.2f}×, {ceiling[1]:4.0%})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--lengths", type=int, nargs="*", default=(512, 2048, 8192))
    parser.add_argument("--options-at", type=int, default=2048, help="length for window, bias, dropout; 0: skip")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tiled", action="store_true", help="the tiles over torch's matrix products too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_blocks()
    dtype = getattr(torch, options.dtype)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.dtype}, median of {options.rounds}, ms")
    print("(time / ours, share of the rate of float32 matrix products)")
    for length in options.lengths:
        sides: dict[str, Side] = {"verim": attention, "torch": fused}
        if options.tiled:
            sides["tiled"] = partial(attention, implementation="tiled")
        if length <= NAIVE_UP_TO:
            sides["naive"] = naive
        compare(f"causal, {length}", length, sides, dtype, options)
    if length := options.options_at:
        window = {"verim": partial(attention, window=options.window)}
        window["torch"] = partial(fused, mask=windowed(length, options.window))
        compare(f"window {options.window}, {length}", length, window, dtype, options)
        bias = torch.randn(HEADS, length, length).masked_fill(~windowed(length, length), -torch.inf).to(dtype)
        sides = {"verim": partial(attention, bias=bias), "torch": partial(fused, mask=bias)}
        compare(f"bias, {length}", length, sides, dtype, options)
        sides = {"verim": partial(attention, dropout=0.1), "torch": partial(fused, dropout=0.1)}
        compare(f"{length}, dropout", length, sides, dtype, options)


if __name__ == "__main__":
    main()
