"""The linear cross entropy against what else computes it, forward and forward and backward, in one process.

`python benchmarks/linear_cross_entropy.py [--threads 2] [--rounds 7]`: losses and gradients must agree first; then the
sides take turns, with the allocator keeping freed blocks on all of them (its best case for the peers); medians.
Peers: torch's linear layer and cross entropy, which build the logits; the same compiled (where a C++ compiler is
found); torch's own chunked version (from 2.13 on). The ceiling is the time of the products alone, two FLOPs a
multiply-add, at the rate that a product of square matrices reaches here.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from verim.ops import linear_cross_entropy
from verim.runtime.allocator import keep_freed_blocks

SHAPES = ((2048, 512, 50_000), (2048, 512, 8192), (1024, 256, 128_000))  # rows, width, vocabulary
SQUARE = 2048  # of the matrices whose product is the ceiling
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def logits_and_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight), targets)


def chunked() -> Loss:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
        return functional.linear_cross_entropy(hidden, weight, targets, options=options)

    return loss


def peers() -> dict[str, Loss]:
    """The others that run here, by name."""
    found: dict[str, Loss] = {"torch": logits_and_loss}
    if shutil.which("g++"):
        found["torch compiled"] = torch.compile(logits_and_loss, dynamic=False)
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["torch chunked"] = chunked()
    return found


def arguments(rows: int, width: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=draw).requires_grad_()
    weight = (torch.randn(vocab, width, generator=draw) / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(vocab, (rows,), generator=draw)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def matmul_rate() -> float:
    """FLOP/s of a product of square float32 matrices, the best of five."""
    left, right = torch.randn(2, SQUARE, SQUARE)
    out = torch.empty(SQUARE, SQUARE)
    return 2 * SQUARE**3 / min(seconds(lambda: torch.mm(left, right, out=out)) for _ in range(5))


def forward(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return loss(hidden, weight, targets)


def both(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    value = loss(hidden, weight, targets)
    return value.detach(), *torch.autograd.grad(value, (hidden, weight))


def compare(shape: tuple[int, int, int], sides: dict[str, Loss], rounds: int) -> None:
    given = arguments(*shape)
    expected = both(logits_and_loss, *given)
    for name, loss in sides.items():
        for one, other in zip(both(loss, *given), expected, strict=True):
            assert (one - other).norm() < 1e-4 * other.norm(), f"{name} disagrees at {shape}"
        forward(loss, *given)
    rate = matmul_rate()
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for _ in range(rounds):
        for name, loss in sides.items():
            times[name][0].append(seconds(partial(forward, loss, *given)))
            times[name][1].append(seconds(partial(both, loss, *given)))
    rows, width, vocab = shape
    products = 2 * rows * width * vocab / rate  # seconds of one of the three
    ours = [statistics.median(kept) for kept in times["verim"]]
    for name, taken in times.items():
        theirs = [statistics.median(side) for side in taken]
        print(
            f"{shape!s:20} {name:14} forward {1e3 * theirs[0]:7.1f} ({theirs[0] / ours[0]:4.2f}×, "
            f"{products / theirs[0]:4.0%} of the ceiling)   forward and backward {1e3 * theirs[1]:7.1f} "
            f"({theirs[1] / ours[1]:4.2f}×, {3 * products / theirs[1]:4.0%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("ROWS", "WIDTH", "VOCAB"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_blocks()
    sides: dict[str, Loss] = {"verim": linear_cross_entropy, **peers()}
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.rounds}, milliseconds")
    for shape in options.shape or SHAPES:
        compare(tuple(shape), sides, options.rounds)


if __name__ == "__main__":
    main()
