"""The prefix sum against its peers: python benchmarks/prefix_sum.py [--threads 2] [--rounds 9] [--type float32]

All sides agree first, then take turns in one process, with freed blocks kept; medians. The ceiling is `x.clone()`, the
same bytes read and written (float32 and wider). Peers: torch.cumsum and numpy.cumsum.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from verim.ops import prefix_sum
from verim.runtime.allocator import keep_freed_blocks

SHAPES = (
    *(((1 << bits,), 0) for bits in (6, 10, 14, 16, 18, 20, 22, 24)),
    *((shape, dim) for shape in ((1024, 1024), (4096, 4096), (1 << 18, 64)) for dim in (1, 0)),
)
Sum = Callable[[Tensor, int], Tensor]


def verim(x: Tensor, dim: int) -> Tensor:
    return prefix_sum(x, dim)


def cumsum(x: Tensor, dim: int) -> Tensor:
    return torch.cumsum(x, dim)


def numpy_cumsum(x: Tensor, dim: int) -> Tensor:
    return torch.from_numpy(np.cumsum(x.numpy(), dim))


def ceiling(x: Tensor, dim: int) -> Tensor:
    return x.clone()


PEERS: dict[str, Sum] = {"verim": verim, "torch": cumsum, "numpy": numpy_cumsum}


def compare(shape: tuple[int, ...], dim: int, dtype: torch.dtype, rounds: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape, dtype=dtype) if dtype.is_floating_point else torch.randint(-9, 9, shape, dtype=dtype)
    expected = torch.cumsum(x.double() if dtype.is_floating_point else x, dim)
    for name, scan in PEERS.items():
        y = scan(x, dim).to(expected.dtype)
        tolerance = 0.0 if not dtype.is_floating_point else 1e-3 if name == "numpy" else 1e-7
        assert (y - expected).abs().max() <= tolerance * expected.abs().max(), f"{name} disagrees at {shape}, {dim}"
    sides = {"ceiling": ceiling, **PEERS}
    times: dict[str, list[float]] = {name: [] for name in sides}
    calls = max(1, (1 << 20) // x.numel())
    for _ in range(rounds):
        for name, scan in sides.items():
            scan(x, dim)
            began = time.perf_counter()
            for _ in range(calls):
                scan(x, dim)
            times[name].append((time.perf_counter() - began) / calls)
    medians = {name: statistics.median(kept) for name, kept in times.items()}
    ours = medians["verim"]
    beside = "   ".join(f"{name} {1e6 * t:10.1f} ({t / ours:5.2f}×)" for name, t in medians.items() if name != "verim")
    print(
        f"{shape!s:13} dim {dim}  verim {1e6 * ours:10.1f}   {beside}   of the ceiling {medians['ceiling'] / ours:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--type", default="float32", help="a data type of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_blocks()
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.rounds}, microseconds")
    for shape, dim in SHAPES:
        compare(shape, dim, getattr(torch, options.type), options.rounds)


if __name__ == "__main__":
    main()
