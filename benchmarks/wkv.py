"""RWKV's weighted key-value against its peers and the machine: python benchmarks/wkv.py [--threads 2] [--rounds 7]

All sides agree first, then take turns in one process, with freed blocks kept (the best case for the peers); medians.
Peers: a loop over unbound steps in plain PyTorch, and the loop of transformers' RWKV, which indexes (its backward pass
is quadratic in the length). The ceiling is what the machine needs at least: for the bytes that the op must move, at
the speed of copying as much, or for its exponentials (two a step, twice that forward and backward), at the speed of
torch.exp in the cache, whichever is more.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from verim.ops import wkv
from verim.ops.wkv.cost import backward_cost, forward_cost
from verim.runtime.allocator import keep_freed_blocks

SHAPES = ((4, 1024, 768), (1, 2048, 2048), (16, 128, 256))
WKV = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def loop(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Steps unbound, so that autograd allocates no full gradient for each of them."""
    a = b = torch.zeros_like(k[:, 0])
    m = torch.full_like(a, -1e38)
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        top = torch.maximum(m, u + k_t)
        past, present = torch.exp(m - top), torch.exp(u + k_t - top)
        outputs.append((past * a + present * v_t) / (past * b + present))
        top = torch.maximum(m - w, k_t)
        past, present = torch.exp(m - w - top), torch.exp(k_t - top)
        a, b, m = past * a + present * v_t, past * b + present, top
    return torch.stack(outputs, 1)


def transformers_loop() -> WKV:
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    def theirs(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        result: Tensor = rwkv_linear_attention_cpu(w.log(), u, k, v)[0]
        return result

    return theirs


def arguments(batch: int, length: int, channels: int) -> list[Tensor]:
    torch.manual_seed(0)
    k, v = torch.randn(2, batch, length, channels)
    w, u = torch.exp(torch.linspace(-5, 3, channels)), torch.randn(channels)
    return [tensor.requires_grad_() for tensor in (k.contiguous(), v.contiguous(), w, u)]


def rate_of(work: Callable[[], object], amount: float, rounds: int = 15) -> float:
    """`amount` a second, by the median of the rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return amount / statistics.median(times)


def ceilings(shape: tuple[int, int, int]) -> tuple[float, float]:
    """The least seconds forward, and forward and backward."""
    costs = [forward_cost(*shape), forward_cost(*shape) + backward_cost(*shape)]
    cells = shape[0] * shape[1] * shape[2]
    source, cached = torch.randn(costs[0].bytes // 8), -torch.rand(8192)
    target, out = torch.empty_like(source), torch.empty_like(cached)

    def exponentials() -> None:
        for _ in range(100):
            torch.exp(cached, out=out)

    copied = rate_of(lambda: target.copy_(source), 8 * len(source))
    exponential = rate_of(exponentials, 100 * len(cached)) * torch.get_num_threads()  # too small for torch's threads
    least = [max(cost.bytes / copied, n * cells / exponential) for cost, n in zip(costs, (2, 4), strict=True)]
    print(f"{shape!s:18} copy {copied / 1e9:.1f} GB/s, exponentials {exponential / 1e9:.1f} G/s")
    return least[0], least[1]


def compare(shape: tuple[int, int, int], sides: dict[str, WKV], rounds: int) -> None:
    given = arguments(*shape)
    gradient = torch.randn(shape)
    expected = loop(*given)
    gradients = torch.autograd.grad(expected, given, gradient)
    for name, side in sides.items():
        y = side(*given)
        for one, other in zip((y, *torch.autograd.grad(y, given, gradient)), (expected, *gradients), strict=True):
            assert (one - other).norm() < 1e-4 * other.norm(), f"{name} disagrees at {shape}"

    def forward(side: WKV) -> None:
        with torch.no_grad():
            side(*given)

    def both(side: WKV) -> None:
        torch.autograd.grad(side(*given), given, gradient)

    least = ceilings(shape)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            for kept, work in zip(times[name], (forward, both), strict=True):
                began = time.perf_counter()
                work(side)
                kept.append(time.perf_counter() - began)
    ours = [statistics.median(kept) for kept in times["verim"]]
    for name, kept in times.items():
        took = [statistics.median(side) for side in kept]
        cells = [
            f"{what} {1e3 * t:8.2f} ({t / o:5.1f}×, {limit / t:4.0%} of the ceiling)"
            for what, t, o, limit in zip(("forward", "forward and backward"), took, ours, least, strict=True)
        ]
        print(f"{shape!s:18} {name:12} {'   '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_blocks()
    sides: dict[str, WKV] = {"verim": wkv}
    if not options.alone:
        sides["loop"] = loop
        try:
            sides["transformers"] = transformers_loop()
        except ImportError:
            print("transformers is not installed: its loop is not compared (pip install transformers)")
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.rounds}, milliseconds")
    for shape in SHAPES:
        compare(shape, sides, options.rounds)


if __name__ == "__main__":
    main()
