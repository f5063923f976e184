"""The linear recurrence against its peers: python benchmarks/linear_recurrence.py [--threads 2] [--rounds 7]

All sides agree first, then take turns in one process, with freed blocks kept (the best case for the peers); medians.
The ceiling is a copy of as many bytes: two inputs read and one output written forward, three read and two written
backward. Peers: a loop over unbound steps in plain PyTorch (our own reference), torch's compiled associative_scan,
mambapy's parallel scan and jax's lax.scan where they are installed (pip install mambapy jax).
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from verim.ops import linear_recurrence
from verim.ops.linear_recurrence.reference import linear_recurrence_reference
from verim.runtime.allocator import keep_freed_blocks

SHAPES = ((4, 4096, 512), (1, 1 << 20, 1), (16, 512, 64))
LONGEST_LOOP = 1 << 14  # steps: beyond, a loop in Python takes minutes
Recurrence = Callable[[Tensor, Tensor], Tensor]


def reference(a: Tensor, b: Tensor) -> Tensor:
    return linear_recurrence_reference(a, b, None, False)[0]


def mambapy() -> Recurrence:
    from mambapy.pscan import pscan

    return lambda a, b: pscan(a.unsqueeze(-1), b.unsqueeze(-1)).squeeze(-1)


def associative_scan() -> Recurrence:
    from torch._higher_order_ops.associative_scan import associative_scan

    def after(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    def recurrence(a: Tensor, b: Tensor) -> Tensor:
        return associative_scan(after, (a, b), dim=1, combine_mode="generic")[1]

    return torch.compile(recurrence)


def jax_scan() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward, and the gradients of a and b for a gradient of h, both jitted, of jax arrays."""
    import jax

    def forward(a: Any, b: Any) -> Any:
        def step(h: Any, now: Any) -> Any:
            h = now[0] * h + now[1]
            return h, h

        rows = jax.numpy.swapaxes(a, 0, 1), jax.numpy.swapaxes(b, 0, 1)
        return jax.numpy.swapaxes(jax.lax.scan(step, jax.numpy.zeros_like(b[:, 0]), rows)[1], 0, 1)

    def both(a: Any, b: Any, dh: Any) -> Any:
        return jax.vjp(forward, a, b)[1](dh)

    return jax.jit(forward), jax.jit(both)


def peers(length: int) -> dict[str, Recurrence]:
    """Those that can run here at this length."""
    sides: dict[str, Recurrence] = {"verim": linear_recurrence}
    if length <= LONGEST_LOOP:
        sides["loop"] = reference
    sides["associative_scan"] = associative_scan()
    if importlib.util.find_spec("mambapy"):
        sides["mambapy"] = mambapy()
    return sides


def compare(shape: tuple[int, int, int], rounds: int) -> None:
    torch.manual_seed(0)
    a, b = torch.rand(shape).requires_grad_(), torch.randn(shape).requires_grad_()
    gradient = torch.randn(shape)
    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    expected = None
    for name, side in peers(shape[1]).items():
        try:
            h = side(a, b)
            got = [h.detach(), *torch.autograd.grad(h, (a, b), gradient)]
        except Exception as error:
            print(f"{shape!s:18} {name} does not run here: {type(error).__name__}")
            continue
        expected = expected or got
        for one, other in zip(got, expected, strict=True):
            assert (one - other).norm() < 1e-4 * other.norm(), f"{name} disagrees at {shape}"

        def forward(side: Recurrence = side) -> None:
            with torch.no_grad():
                side(a, b)

        def both(side: Recurrence = side) -> None:
            torch.autograd.grad(side(a, b), (a, b), gradient)

        works[name] = forward, both
    if importlib.util.find_spec("jax"):
        import jax

        scan, gradients = jax_scan()
        arrays = [jax.numpy.asarray(tensor.detach().numpy()) for tensor in (a, b, gradient)]
        assert expected is not None and abs(torch.tensor(scan(*arrays[:2]).tolist()) - expected[0]).max() < 1e-4
        works["jax"] = (
            lambda: scan(*arrays[:2]).block_until_ready(),
            lambda: jax.block_until_ready(gradients(*arrays)),
        )
    works["ceiling"] = copies(3 * a.numel() // 2), copies((3 + 5) * a.numel() // 2)
    measure(shape, works, rounds)


def copies(floats: int) -> Callable[[], object]:
    source, target = torch.ones(floats), torch.ones(floats)
    return lambda: target.copy_(source)


def measure(
    shape: tuple[int, ...], works: dict[str, tuple[Callable[[], object], Callable[[], object]]], rounds: int
) -> None:
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in works}
    for _ in range(rounds):
        for name, pair in works.items():
            for kept, work in zip(times[name], pair, strict=True):
                began = time.perf_counter()
                work()
                kept.append(time.perf_counter() - began)
    medians = {name: [statistics.median(side) for side in kept] for name, kept in times.items()}
    ours, ceiling = medians["verim"], medians["ceiling"]
    for name, theirs in medians.items():
        print(
            f"{shape!s:18} {name:16} forward {1e3 * theirs[0]:8.2f} ({theirs[0] / ours[0]:5.1f}×)   "
            f"forward and backward {1e3 * theirs[1]:8.2f} ({theirs[1] / ours[1]:5.1f}×)"
        )
    fractions = [limit / time for limit, time in zip(ceiling, ours, strict=True)]
    print(f"{shape!s:18} of the ceiling: forward {fractions[0]:.2f}, forward and backward {fractions[1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_blocks()
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.rounds}, milliseconds")
    for shape in SHAPES:
        compare(shape, options.rounds)


if __name__ == "__main__":
    main()
