"""Devices by their data sheets. Peaks are dense, those of 16 and 8 bits with float32 accumulation.

Multiprocessors' limits: NVIDIA, CUDA C++ Programming Guide, tables "Technical Specifications per Compute Capability"
and "Shared Memory"; for AMD the CDNA 3 instruction set architecture reference, chapter 3. Network and launch are
assumptions, see `Device`: 400 Gb/s a device in machines made for clusters (A100: 200), 100 Gb/s in others; 5 µs.
"""

from dataclasses import replace

from verim.anatomy.devices.device import Device, Multiprocessor

_CLUSTER, _OLDER_CLUSTER, _SINGLE = 400e9 / 8, 200e9 / 8, 100e9 / 8
_LAUNCH = 5e-6
_PCIE_3, _PCIE_4, _PCIE_5 = 16e9, 32e9, 64e9  # sixteen lanes, in one direction
_KIB, _MIB = 2**10, 2**20


def _nvidia(shared: int, threads: int, blocks: int, reserved: int = 1, unit: int = 128) -> Multiprocessor:
    """Of `shared` and `reserved` KiB of shared memory; a block can have all of it but what is reserved."""
    return Multiprocessor(
        registers=64 * _KIB,
        shared_bytes=shared * _KIB,
        threads=threads,
        blocks=blocks,
        block_shared_bytes=(shared - reserved) * _KIB,
        shared_unit=unit,
        reserved_shared_bytes=reserved * _KIB,
    )


_VOLTA = _nvidia(shared=96, threads=2048, blocks=32, reserved=0, unit=256)  # compute capability 7.0
_TURING = _nvidia(shared=64, threads=1024, blocks=16, reserved=0, unit=256)  # 7.5
_AMPERE = _nvidia(shared=164, threads=2048, blocks=32)  # 8.0
_AMPERE_SMALL = _nvidia(shared=100, threads=1536, blocks=16)  # 8.6
_ADA = _nvidia(shared=100, threads=1536, blocks=24)  # 8.9
_HOPPER = _nvidia(shared=228, threads=2048, blocks=32)  # 9.0
_BLACKWELL = _nvidia(shared=228, threads=2048, blocks=32)  # 10.0
_BLACKWELL_SMALL = _nvidia(shared=100, threads=1536, blocks=24)  # 12.0
_CDNA_3 = Multiprocessor(
    registers=128 * _KIB,
    shared_bytes=64 * _KIB,
    threads=2048,
    blocks=32,
    block_shared_bytes=64 * _KIB,
    shared_unit=512,
    reserved_shared_bytes=0,
    warp=64,
    register_unit=8 * 64,
    thread_registers=512,
)


def _tera(**peaks: float) -> dict[str, float]:
    """TFLOP/s in FLOP/s."""
    return {name: peak * 1e12 for name, peak in peaks.items()}


_A100_80GB = Device(
    name="a100-80gb", kind="cuda", multiprocessors=108, multiprocessor=_AMPERE, l2_bytes=40 * _MIB,
    memory_bytes=80 * 10**9, memory_bandwidth=2039e9,
    peaks=_tera(float32=19.5, tf32=156, bfloat16=312, float16=312, float64=19.5),
    link=300e9, pcie=_PCIE_4, network=_OLDER_CLUSTER, watts=400, launch_seconds=_LAUNCH,
    source="NVIDIA A100 Tensor Core GPU data sheet (2021), SXM; A100 architecture white paper, table 4",
)  # fmt: skip
_H100_SXM = Device(
    name="h100-sxm", kind="cuda", multiprocessors=132, multiprocessor=_HOPPER, l2_bytes=50 * _MIB,
    memory_bytes=80 * 10**9, memory_bandwidth=3.35e12,
    peaks=_tera(float32=67, tf32=494.7, bfloat16=989.4, float16=989.4, float8=1978.9, float64=67),
    link=450e9, pcie=_PCIE_5, network=_CLUSTER, watts=700, launch_seconds=_LAUNCH,
    source="NVIDIA H100 Tensor Core GPU data sheet, SXM5; H100 architecture white paper, table 2",
)  # fmt: skip

_ROWS = (
    _A100_80GB,
    replace(_A100_80GB, name="a100-40gb", memory_bytes=40 * 10**9, memory_bandwidth=1555e9),
    _H100_SXM,
    replace(
        _H100_SXM, name="h100-pcie", multiprocessors=114, memory_bandwidth=2.0e12,
        peaks=_tera(float32=51.2, tf32=378, bfloat16=756.5, float16=756.5, float8=1513, float64=51.2),
        link=300e9, watts=350,
        source="NVIDIA H100 Tensor Core GPU data sheet, PCIe; H100 architecture white paper, table 2",
    ),
    replace(
        _H100_SXM, name="h200", memory_bytes=141 * 10**9, memory_bandwidth=4.8e12,
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM (the processor is the H100's)",
    ),
    Device(
        name="b200", kind="cuda", multiprocessors=148, multiprocessor=_BLACKWELL, l2_bytes=None,
        memory_bytes=180 * 10**9, memory_bandwidth=8e12,
        peaks=_tera(float32=75, tf32=1125, bfloat16=2250, float16=2250, float8=4500, float64=37),
        link=900e9, pcie=_PCIE_5, network=_CLUSTER, watts=1000, launch_seconds=_LAUNCH,
        source="NVIDIA DGX B200 data sheet and HGX B200 page, an eighth each (sources disagree about its L2)",
    ),
    Device(
        name="mi300x", kind="hip", multiprocessors=304, multiprocessor=_CDNA_3, l2_bytes=8 * 4 * _MIB,
        memory_bytes=192 * 10**9, memory_bandwidth=5.3e12,
        peaks=_tera(float32=163.4, tf32=653.7, bfloat16=1307.4, float16=1307.4, float8=2614.9, float64=163.4),
        link=448e9, pcie=_PCIE_5, network=_CLUSTER, watts=750, launch_seconds=_LAUNCH,
        source="AMD Instinct MI300X data sheet (2023); CDNA 3 white paper (seven links of 64 GB/s in a direction)",
    ),
    Device(
        name="l40s", kind="cuda", multiprocessors=142, multiprocessor=_ADA, l2_bytes=96 * _MIB,
        memory_bytes=48 * 10**9, memory_bandwidth=864e9,
        peaks=_tera(float32=91.6, tf32=183, bfloat16=362, float16=362, float8=733, float64=1.43),
        link=None, pcie=_PCIE_4, network=_SINGLE, watts=350, launch_seconds=_LAUNCH,
        source="NVIDIA L40S data sheet; Ada architecture white paper, appendix (float64 at 1/64 of float32)",
    ),
    Device(
        name="l4", kind="cuda", multiprocessors=58, multiprocessor=_ADA, l2_bytes=48 * _MIB,
        memory_bytes=24 * 10**9, memory_bandwidth=300e9,
        peaks=_tera(float32=30.3, tf32=60.5, bfloat16=121, float16=121, float8=242.5, float64=0.473),
        link=None, pcie=_PCIE_4, network=_SINGLE, watts=72, launch_seconds=_LAUNCH,
        source="NVIDIA L4 data sheet (halved where it counts sparsity); Ada architecture white paper",
    ),
    Device(
        name="a10", kind="cuda", multiprocessors=72, multiprocessor=_AMPERE_SMALL, l2_bytes=6 * _MIB,
        memory_bytes=24 * 10**9, memory_bandwidth=600e9,
        peaks=_tera(float32=31.2, tf32=62.5, bfloat16=125, float16=125, float64=0.488),
        link=None, pcie=_PCIE_4, network=_SINGLE, watts=150, launch_seconds=_LAUNCH,
        source="NVIDIA A10 data sheet; GA102 architecture white paper (float64 at 1/64 of float32)",
    ),
    Device(
        name="t4", kind="cuda", multiprocessors=40, multiprocessor=_TURING, l2_bytes=4 * _MIB,
        memory_bytes=16 * 10**9, memory_bandwidth=320e9,
        peaks=_tera(float32=8.1, float16=65, float64=0.254),
        link=None, pcie=_PCIE_3, network=_SINGLE, watts=70, launch_seconds=_LAUNCH,
        source="NVIDIA T4 data sheet; Turing architecture white paper (no bfloat16, float64 at 1/32 of float32)",
    ),
    Device(
        name="v100", kind="cuda", multiprocessors=80, multiprocessor=_VOLTA, l2_bytes=6 * _MIB,
        memory_bytes=32 * 10**9, memory_bandwidth=900e9,
        peaks=_tera(float32=15.7, float16=125, float64=7.8),
        link=150e9, pcie=_PCIE_3, network=_SINGLE, watts=300, launch_seconds=_LAUNCH,
        source="NVIDIA V100 data sheet, SXM2 32 GB; Volta architecture white paper, table 1 (no bfloat16)",
    ),
    Device(
        name="rtx5090", kind="cuda", multiprocessors=170, multiprocessor=_BLACKWELL_SMALL, l2_bytes=96 * _MIB,
        memory_bytes=32 * 10**9, memory_bandwidth=1792e9,
        peaks=_tera(float32=104.8, tf32=104.8, bfloat16=209.5, float16=209.5, float8=419, float64=1.64),
        link=None, pcie=_PCIE_5, network=_SINGLE, watts=575, launch_seconds=_LAUNCH,
        source="NVIDIA RTX Blackwell GPU architecture white paper, appendix",
    ),
    Device(
        name="rtx4090", kind="cuda", multiprocessors=128, multiprocessor=_ADA, l2_bytes=72 * _MIB,
        memory_bytes=24 * 10**9, memory_bandwidth=1008e9,
        peaks=_tera(float32=82.6, tf32=82.6, bfloat16=165.2, float16=165.2, float8=330.3, float64=1.29),
        link=None, pcie=_PCIE_4, network=_SINGLE, watts=450, launch_seconds=_LAUNCH,
        source="NVIDIA Ada GPU architecture white paper, appendix A",
    ),
    Device(
        name="rtx3090", kind="cuda", multiprocessors=82, multiprocessor=_AMPERE_SMALL, l2_bytes=6 * _MIB,
        memory_bytes=24 * 10**9, memory_bandwidth=936e9,
        peaks=_tera(float32=35.6, tf32=35.6, bfloat16=71, float16=71, float64=0.556),
        link=56.25e9, pcie=_PCIE_4, network=_SINGLE, watts=350, launch_seconds=_LAUNCH,
        source="NVIDIA Ampere GA102 GPU architecture white paper, appendix A",
    ),
)  # fmt: skip
TABLE = {row.name: row for row in _ROWS}
ALIASES = {"a100": "a100-80gb", "a100-sxm": "a100-80gb", "h100": "h100-sxm", "h200-sxm": "h200"}
"""The usual kind of a name that does not say which."""
