"""The kernels on a CUDA device against their peers: python benchmarks/gpu.py [OP ...]

Every side's output is compared with the first's before it is timed; medians of CUDA events, the second-level cache
flushed between calls (triton.testing.do_bench). Peers, where they are installed: mamba-ssm (the selective scan),
flash-linear-attention (the linear recurrence), torch (cumsum, scaled_dot_product_attention, cross_entropy).
`roofline`: the bytes of the op's cost over the bandwidth of a device copy, divided by the time; for attention and
linear_cross_entropy the FLOPs over the rate of a bfloat16 matrix product of 8192.
"""

import argparse
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from verim.ops import attention, linear_cross_entropy, linear_recurrence, prefix_sum, selective_scan, wkv
from verim.ops.kernel import KERNELS

Side = Callable[..., Tensor]
Inputs = list[Tensor]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def bench_prefix_sum() -> None:
    for shape, dim in (((1 << 26,), 0), ((4096, 4096), 1), ((4096, 4096), 0), ((64, 1 << 20), 1)):
        sides: dict[str, Side] = {"verim": lambda x, dim=dim: prefix_sum(x, dim)}
        sides |= {"torch.cumsum": lambda x, dim=dim: x.cumsum(dim), "clone": lambda x: x.clone()}
        compare(f"prefix_sum {shape} along {dim}", sides, [draw(*shape)], unlike=("clone",))


def bench_linear_recurrence() -> None:
    for shape in ((4, 4096, 512), (8, 2048, 2048), (1, 65536, 64)):
        a, b = draw(*shape).sigmoid(), draw(*shape)
        sides: dict[str, Side] = {"verim": linear_recurrence}
        if importlib.util.find_spec("fla"):
            from fla.ops.hgrn import fused_recurrent_hgrn

            sides["fla hgrn"] = lambda a, b: fused_recurrent_hgrn(b, a.log())[0]
        compare(f"linear_recurrence {shape}", sides, [a, b])


def bench_selective_scan() -> None:
    for batch, length, channels, state in ((1, 2048, 1536, 16), (8, 2048, 2048, 16), (4, 512, 512, 16)):
        for dtype in (torch.float32, torch.bfloat16):
            sequences = [draw(batch, length, channels, dtype=dtype) for _ in range(2)]
            sequences[1] = torch.nn.functional.softplus(sequences[1] - 2)
            B, C = (draw(batch, length, state, dtype=dtype) for _ in range(2))
            inputs = [*sequences, -8 * torch.rand(channels, state, device="cuda") - 0.5, B, C, draw(channels)]
            sides: dict[str, Side] = {"verim": selective_scan}
            if importlib.util.find_spec("mamba_ssm"):
                sides["mamba-ssm"] = mamba_ssm
            compare(f"selective_scan {(batch, length, channels, state)} {dtype}", sides, inputs)


def mamba_ssm(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
    return selective_scan_fn(u, delta, A, B, C, D).transpose(1, 2)


def bench_wkv() -> None:
    for shape in ((4, 1024, 768), (8, 4096, 2048)):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [*(draw(*shape, dtype=dtype) for _ in range(2)), draw(shape[2]).exp(), draw(shape[2])]
            compare(f"wkv {shape} {dtype}", {"verim": wkv}, inputs)


def bench_attention() -> None:
    for length in (512, 2048, 8192):
        inputs = [draw(2, length, 16, 64, dtype=torch.bfloat16) for _ in range(3)]

        def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            turned = (tensor.transpose(1, 2) for tensor in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(*turned, is_causal=True).transpose(1, 2)

        sides: dict[str, Side] = {"verim": lambda q, k, v: attention(q, k, v, implementation="kernel")}
        compare(f"attention causal 2 x 16 x 64, length {length}", sides | {"torch": theirs}, inputs, products=True)


def bench_linear_cross_entropy() -> None:
    targets = torch.randint(50_000, (8192,), device="cuda")
    inputs = [draw(8192, 1024, dtype=torch.bfloat16), 0.02 * draw(50_000, 1024, dtype=torch.bfloat16)]

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets)

    def theirs(hidden: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), targets)

    sides: dict[str, Side] = {"verim": ours, "torch": theirs}
    compare("linear_cross_entropy 8192 x 1024 -> 50 000", sides, inputs, products=True)


def compare(
    what: str, sides: dict[str, Side], inputs: Inputs, unlike: tuple[str, ...] = (), products: bool = False
) -> None:
    """Prints the time of every side, forward alone and with the backward pass; sides `unlike` are not compared."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    expected = next(iter(sides.values()))(*inputs)
    gradient = torch.randn_like(expected)
    tolerance = 2e-2 if expected.dtype is torch.bfloat16 or products else 1e-4
    ours: list[float] = []
    for name, side in sides.items():
        got = side(*inputs)
        if name not in unlike and (got - expected).float().norm() > tolerance * expected.float().norm():
            print(f"{what:50} {name:14} disagrees with the first side: not timed")
            continue

        def forward(side: Side = side) -> None:
            with torch.no_grad():
                side(*inputs)

        def both(side: Side = side) -> None:
            torch.autograd.grad(side(*leaves), leaves, gradient)

        times = [median_milliseconds(work) for work in (forward, both)]
        ours = ours or times
        ratios = [theirs / own for theirs, own in zip(times, ours, strict=True)]
        line = f"{what:50} {name:14} forward {times[0]:8.3f} ms ({ratios[0]:5.2f}x)  "
        line += f"forward and backward {times[1]:8.3f} ms ({ratios[1]:5.2f}x)"
        if name == "verim":
            floors = [floor_milliseconds(work, products) for work in (forward, both)]
            line += "  roofline " + " / ".join(f"{f / t:.2f}" for f, t in zip(floors, times, strict=True))
        print(line)


def median_milliseconds(work: Callable[[], None]) -> float:
    from triton.testing import do_bench

    return do_bench(work, return_mode="median")


def floor_milliseconds(work: Callable[[], None], products: bool) -> float:
    """What the costs of the kernels that `work` calls would take at the device's best rate."""
    costs = []
    originals = {kernel: kernel.cost for kernel in KERNELS.values()}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            costs.extend(cost(*args) for kernel, cost in originals.items() if kernel.operator is function)
            return function(*args, **(kwargs or {}))

    with Watch():
        work()
    if products:
        return 1e3 * sum(cost.flops for cost in costs) / product_rate()
    return 1e3 * sum(cost.bytes for cost in costs) / copy_rate()


def copy_rate() -> float:
    """Bytes a second, read and written."""
    source = draw(1 << 28)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-3 * median_milliseconds(lambda: target.copy_(source)))


def product_rate() -> float:
    """FLOPs a second."""
    matrix = draw(8192, 8192, dtype=torch.bfloat16)
    return 2 * 8192**3 / (1e-3 * median_milliseconds(lambda: matrix @ matrix))


BENCHMARKS = {
    "prefix_sum": bench_prefix_sum,
    "linear_recurrence": bench_linear_recurrence,
    "selective_scan": bench_selective_scan,
    "wkv": bench_wkv,
    "attention": bench_attention,
    "linear_cross_entropy": bench_linear_cross_entropy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=", ".join(BENCHMARKS))
    chosen = parser.parse_args().ops or list(BENCHMARKS)
    if unknown := set(chosen) - set(BENCHMARKS):
        parser.error(f"OP is {', '.join(sorted(unknown))}, expected some of {', '.join(BENCHMARKS)}")
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py times kernels on a CUDA device, and torch finds none on this machine.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {copy_rate() / 1e9:.0f} GB/s")
    for name in chosen:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
