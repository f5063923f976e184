"""The selective scan against its peers: python benchmarks/selective_scan.py [--threads 2] [--rounds 7]

All sides agree first, then take turns in one process, with freed blocks kept (the best case for the peers); medians.
Peers: a loop over unbound steps in plain PyTorch (our own reference; mamba_ssm's and transformers' loop indexes
instead, whose backward pass is quadratic in the length), and mambapy's parallel scan where it is installed
(pip install mambapy).
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from verim.ops import selective_scan
from verim.ops.selective_scan.reference import selective_scan_reference
from verim.runtime.allocator import keep_freed_blocks

SHAPES = ((1, 2048, 1536, 16), (4, 512, 512, 16), (16, 128, 64, 16))
Scan = Callable[..., Tensor]


def reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return selective_scan_reference(u, delta, A, B, C, D, None)[0]


def mambapy() -> Scan:
    from mambapy.pscan import pscan

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """As in mambapy's MambaBlock.selective_scan."""
        decay = torch.exp(delta.unsqueeze(-1) * A)
        drive = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        states = pscan(decay, drive)
        return (states @ C.unsqueeze(-1)).squeeze(3) + D * u

    return scan


def arguments(batch: int, length: int, channels: int, state: int) -> list[Tensor]:
    torch.manual_seed(0)
    u = torch.randn(batch, length, channels)
    delta = torch.nn.functional.softplus(torch.randn(batch, length, channels) - 2)
    A = -torch.rand(channels, state) * 8 - 0.5
    B, C = torch.randn(2, batch, length, state)
    return [tensor.requires_grad_() for tensor in (u, delta, A, B, C, torch.randn(channels))]


def compare(shape: tuple[int, int, int, int], sides: dict[str, Scan], rounds: int) -> None:
    given = arguments(*shape)
    gradient = torch.randn(shape[:3])
    expected = reference(*given)
    gradients = torch.autograd.grad(expected, given, gradient)
    for name, scan in sides.items():
        y = scan(*given)
        for one, other in zip((y, *torch.autograd.grad(y, given, gradient)), (expected, *gradients), strict=True):
            assert (one - other).norm() < 1e-4 * other.norm(), f"{name} disagrees at {shape}"

    def forward(scan: Scan) -> None:
        with torch.no_grad():
            scan(*given)

    def both(scan: Scan) -> None:
        torch.autograd.grad(scan(*given), given, gradient)

    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for _ in range(rounds):
        for name, scan in sides.items():
            for kept, work in zip(times[name], (forward, both), strict=True):
                began = time.perf_counter()
                work(scan)
                kept.append(time.perf_counter() - began)
    ours = [statistics.median(kept) for kept in times["verim"]]
    for name, kept in times.items():
        theirs = [statistics.median(side) for side in kept]
        print(
            f"{shape!s:22} {name:8} forward {1e3 * theirs[0]:8.2f} ({theirs[0] / ours[0]:5.1f}×)   "
            f"forward and backward {1e3 * theirs[1]:8.2f} ({theirs[1] / ours[1]:5.1f}×)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_blocks()
    sides: dict[str, Scan] = {"verim": selective_scan, "loop": reference}
    if importlib.util.find_spec("mambapy"):
        sides["mambapy"] = mambapy()
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.rounds}, milliseconds")
    for shape in SHAPES:
        compare(shape, sides, options.rounds)


if __name__ == "__main__":
    main()
