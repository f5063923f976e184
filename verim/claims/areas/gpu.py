"""Anatomy of training on a device: forward and backward, idle and busy, precision, traffic, launches."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from verim import ops
from verim.anatomy import ceilings, model_config, sweep, transfers
from verim.anatomy.ceilings import Ceilings
from verim.anatomy.devices import device
from verim.anatomy.workload import Workload
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost, Between, Exactly, Goldens
from verim.claims.timing import median_seconds
from verim.ops.linear.cost import forward_cost
from verim.ops.rms_norm.cost import forward_cost as norm_cost

_NVIDIA = "NVIDIA, Matrix Multiplication Background User's Guide, section 2"
_ROOFLINE = "Williams et al. 2009, Roofline, doi 10.1145/1498765.1498785"
_TIMES = Ceilings("cpu", 1, {"float32": 1.0}, ((1, 1.0),), 1.0)
"""Rates of nothing: for sweeps of which times and FLOPs are read, not what share of a peak they are."""


def _swept(batches: Sequence[int], width: int, length: int, mixer: str = "attention") -> sweep.Sweep:
    """Training steps at these batches."""
    return sweep.sweep(
        partial(model_config, mixer), width, "batch", batches, Workload(length=length), steps=5, ceilings=_TIMES
    )


@claim(
    id="gpu-backward-flops",
    area="gpu",
    text="The backward pass takes twice the FLOPs of the forward pass",
    source="Kaplan et al. 2020, arXiv 2001.08361, section 2.1",
    expected=Exactly(2.0, tolerance=0.1),
    cost=2,
    kind="measured",
    remark="a product has two gradients, each as dear as itself; scans and norms have other ratios",
)
def backward_flops(width: int = 64, length: int = 64) -> list[Measurement]:
    found = []
    for mixer in ("attention", "mamba"):
        (sample,) = _swept((2,), width, length, mixer).samples
        conditions = f"FLOPs counted, backward over forward with loss, {mixer}, width {width}, 2 × {length} tokens"
        found.append(Measurement(sample.backward_flops_ratio, conditions))
    return found


@claim(
    id="gpu-backward-time",
    area="gpu",
    text="The backward pass takes two to three times as long as the forward pass",
    source="anatomy of GPU training, section on forward and backward",
    expected=Between(1.8, 3.2),
    cost=15,
    kind="measured",
    remark="with room for the noise of a shared machine; the passes of one step, so both saw the same load",
)
def backward_time(width: int = 128, length: int = 256, batches: Sequence[int] = (2, 8)) -> list[Measurement]:
    found = []
    for mixer in ("attention", "mamba"):
        for sample in _swept(batches, width, length, mixer).samples:
            conditions = f"seconds, backward over forward with loss, {mixer}, width {width}, {sample.value} × {length}"
            found.append(Measurement(sample.backward_ratio, f"{conditions} tokens"))
    return found


@claim(
    id="gpu-small-batches",
    area="gpu",
    text="Small batches leave the device idle",
    source="anatomy of GPU training, section on batch sizes; Hockney and Jesshope 1981, section 1.3.2",
    expected=AtMost(0.8),
    cost=6,
    kind="measured",
    remark="on this machine, whose CPU is the device; a small model, of which a sequence is little work",
)
def small_batches(
    width: int = 16, length: int = 16, batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)
) -> Measurement:
    samples = _swept(batches, width, length).samples
    best = max(samples, key=lambda sample: sample.tokens_per_second)
    return Measurement(
        samples[0].tokens_per_second / best.tokens_per_second,
        f"tokens a second at batch {samples[0].value} over the most of batches to {batches[-1]}, at {best.value}, "
        f"width {width}, {length} tokens",
    )


@claim(
    id="gpu-larger-batches",
    area="gpu",
    text="A larger batch is more efficient, up to the knee",
    source="anatomy of GPU training, section on batch sizes",
    expected=AtLeast(1.1),
    cost=6,
    kind="measured",
    remark="holds for the doublings below the knee, not for those beyond",
)
def larger_batches(
    width: int = 16, length: int = 16, batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)
) -> list[Measurement]:
    samples = _swept(batches, width, length).samples
    found = []
    for one, other in itertools.pairwise(samples):
        gain = other.tokens_per_second / one.tokens_per_second
        conditions = f"tokens a second at batch {other.value} over batch {one.value}, width {width}, {length} tokens"
        found.append(Measurement(gain, conditions))
    return found


@claim(
    id="gpu-bfloat16-sheet",
    area="gpu",
    text="Products in bfloat16 reach twice the rate of those in TF32",
    source="anatomy of GPU training, section on precision; data sheets of the devices",
    expected=Exactly(2.0, relative=0.02),
    cost=0.1,
    kind="computed",
    remark="dense; against float32 without tensor cores it is 15 or 16 times (A100, H100)",
)
def bfloat16_sheet(names: Sequence[str] = ("a100", "h100", "b200", "l40s", "rtx4090", "mi300x")) -> list[Measurement]:
    return [
        Measurement(device(name).peak("bfloat16") / device(name).peak("tf32"), f"peaks of the data sheet, {name}")
        for name in names
    ]


@claim(
    id="gpu-bfloat16-here",
    area="gpu",
    text="Products in bfloat16 are at least twice as fast as in float32",
    source="anatomy of GPU training, section on precision",
    expected=AtLeast(2.0),
    cost=3,
    kind="measured",
    remark="where the processor has units for it: some CPUs are slower with it",
)
def bfloat16_here() -> Measurement:
    place = "cuda:0" if torch.cuda.is_available() else "cpu"
    peaks = ceilings.measure_ceilings(place, ("bfloat16",)).matmul
    return Measurement(peaks["bfloat16"] / peaks["float32"], f"FLOP/s of the best square product, bfloat16, {place}")


@claim(
    id="gpu-ridge",
    area="gpu",
    text="A product is bound by arithmetic from 138.9 FLOPs a byte on a V100, and from 295 on an H100",
    source=f"{_NVIDIA}; {_ROOFLINE}",
    expected=Goldens({"v100, float16": 138.9, "h100, bfloat16": 295}, relative=0.005),
    cost=0.1,
    kind="computed",
)
def ridge() -> Measurement:
    points = {"v100, float16": ("v100", "float16"), "h100, bfloat16": ("h100", "bfloat16")}
    return Measurement(
        {name: device(row).ridge(dtype) for name, (row, dtype) in points.items()}, "dense peak over memory bandwidth"
    )


@claim(
    id="gpu-intensity",
    area="gpu",
    text="8192 × 128 × 8192 has an intensity of 124.1 FLOPs a byte, 8192³ one of 2730, a vector below 1",
    source=_NVIDIA,
    expected=Goldens({"128 rows": 124.1, "8192 rows": 2730.7, "1 row": 1.0}, relative=0.001),
    cost=0.1,
    kind="computed",
    remark="float16; a V100 with its 138.9 moves data for the first and the last, and computes for the second",
)
def intensity() -> Measurement:
    rows = {"128 rows": 128, "8192 rows": 8192, "1 row": 1}
    costs = {name: forward_cost(count, 8192, 8192, element_bytes=2) for name, count in rows.items()}
    return Measurement(
        {name: cost.flops / cost.bytes for name, cost in costs.items()}, "FLOPs over bytes of our linear op's cost"
    )


@claim(
    id="gpu-moving-data",
    area="gpu",
    text="Moving data costs more than arithmetic: elementwise work takes many times what its FLOPs take at the peak",
    source=f"{_ROOFLINE}; anatomy of GPU training, section on memory",
    expected=AtLeast(5.0),
    cost=3,
    kind="measured",
)
def moving_data(rows: int = 16384, width: int = 512) -> Measurement:
    x, gain = torch.randn(rows, width), torch.ones(width)
    left, right = (torch.randn(1024, 1024) for _ in range(2))
    norm, product = median_seconds([partial(ops.rms_norm, x, gain), partial(torch.mm, left, right)])
    per_flop = product / (2 * 1024**3)
    flops = norm_cost(rows, width).flops
    return Measurement(
        norm / (flops * per_flop),
        f"seconds a FLOP of our RMS norm of [{rows}, {width}] over those of a product of 1024³, float32, in turns",
    )


@claim(
    id="gpu-launch",
    area="gpu",
    text="An op on few elements costs its launch, whatever it computes",
    source="anatomy of GPU training, section on launch overhead",
    expected=AtMost(1.5),
    cost=1,
    kind="measured",
    remark="on this machine's CPU: until the op is on its way; a CUDA kernel takes about 5 µs",
)
def launch(elements: int = 256) -> Measurement:
    few, one = torch.ones(elements), torch.ones(1)
    many, single = median_seconds([partial(torch.add, few, few), partial(torch.add, one, one)])
    return Measurement(many / single, f"seconds of adding {elements} numbers over those of adding one, in turns")


@claim(
    id="gpu-launch-cuda",
    area="gpu",
    text="Launching a kernel takes about 5 µs",
    source="anatomy of GPU training, section on launch overhead",
    expected=Between(2, 12),
    cost=2,
    kind="measured",
    gpu=True,
)
def launch_on_a_device() -> Measurement:
    seconds = ceilings.measure_ceilings("cuda:0", ()).launch_seconds
    return Measurement(1e6 * seconds, f"µs of adding one number, a hundred in a row, {torch.cuda.get_device_name()}")


@claim(
    id="gpu-transfer",
    area="gpu",
    text="Copies from pinned memory are faster than those from pageable memory",
    source="anatomy of GPU training, section on transfers; NVIDIA, CUDA C++ Best Practices Guide, section 10.1",
    expected=AtLeast(1.3),
    cost=2,
    kind="measured",
    gpu=True,
)
def transfer(sizes: Sequence[int] = (2**22, 2**28)) -> list[Measurement]:
    found = []
    for size in sizes:
        there = transfers.measure_transfers(size)
        found.append(Measurement(there.pageable / there.pinned, f"seconds, pageable over pinned, {size:g} bytes"))
    return found


@claim(
    id="gpu-transfer-hidden",
    area="gpu",
    text="Copying a batch of tokens is hidden behind the step that computes",
    source="anatomy of GPU training, section on transfers",
    expected=AtMost(0.01),
    cost=0.1,
    kind="computed",
    remark="tokens are 8 bytes each; a batch of images in float32 is another matter",
)
def transfer_hidden(names: Sequence[str] = ("v100", "a100", "h100"), host_copy: float = 10e9) -> list[Measurement]:
    tokens, parameters = 8 * 2048, 125e6
    found = []
    for name in names:
        row = device(name)
        seconds = 6 * parameters * tokens / (0.4 * row.peak("float16"))
        share = transfers.transfers(row, 8 * tokens, seconds, host_copy).pageable / seconds
        found.append(
            Measurement(share, f"pageable copy over the step of 125 M parameters at 40 % of the peak, 8 × 2048, {name}")
        )
    return found


@claim(
    id="gpu-convolution",
    area="gpu",
    text="A convolution is a product of matrices (im2col)",
    source="Chellapilla et al. 2006; anatomy of GPU training, section on convolutions",
    expected=AtMost(1e-6),
    cost=1,
    kind="measured",
)
def convolution(length: int = 65, channels: int = 12, kernel: int = 4) -> list[Measurement]:
    x, weight = torch.randn(2, length, channels), torch.randn(channels, kernel)
    padded = nn.functional.pad(x.double(), (0, 0, kernel - 1, 0))
    columns = padded.unfold(1, kernel, 1).transpose(1, 2)  # [batch, channels, length, kernel]: what each place sees
    product = (columns @ weight.double()[:, :, None])[..., 0].transpose(1, 2)
    causal = _relative(ops.causal_conv1d(x, weight), product)
    image, filters = torch.randn(2, 3, 17, 19), torch.randn(5, 3, 3, 3)
    whole = (filters.double().flatten(1) @ nn.functional.unfold(image.double(), 3)).view(2, 5, 15, 17)
    plane = _relative(nn.functional.conv2d(image, filters), whole)
    words = "relative difference in float32 from the product in float64"
    return [
        Measurement(causal, f"{words}, our causal convolution of kernel {kernel}, [2, {length}, {channels}]"),
        Measurement(plane, f"{words}, torch's convolution of 3 × 3 on [2, 3, 17, 19]"),
    ]


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
