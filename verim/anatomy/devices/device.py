"""What a device is, as one value: what it computes, keeps and moves a second, and where each figure stands written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from verim.errors import InputError

Kind = Literal["cuda", "hip", "cpu"]


@dataclass(frozen=True)
class Multiprocessor:
    """What the thread blocks that lie on one multiprocessor at once share, and in which units it is handed out.

    - `registers`: of 32 bits; a warp gets them in units of `register_unit`, a thread at most `thread_registers`.
    - `shared_bytes`: of shared memory for all blocks, at most `block_shared_bytes` for one, in units of `shared_unit`;
      the system takes `reserved_shared_bytes` of every block's.
    - `threads`, `warps`, `blocks`: at most so many at once; a block has at most `block_threads`, in warps of `warp`.
    - `warp_unit`: so many schedulers share the registers evenly, each with its own warps.
    """

    registers: int
    shared_bytes: int
    threads: int
    blocks: int
    block_shared_bytes: int
    shared_unit: int
    reserved_shared_bytes: int
    warp: int = 32
    warp_unit: int = 4
    register_unit: int = 256
    thread_registers: int = 255
    block_threads: int = 1024

    @property
    def warps(self) -> int:
        return self.threads // self.warp


@dataclass(frozen=True)
class Device:
    """A device of one kind. Bytes, bytes a second, FLOP/s, watts, seconds; None where there is no such thing.

    - `peaks`: FLOP/s by data type, of dense products ("float32", "tf32", "bfloat16", "float16", "float8", "float64");
      structured sparsity, with which data sheets double them, is never counted. Products of 16 and 8 bits add up in
      float32.
    - `memory_bandwidth`: of the device's own memory, reading and writing together.
    - `link`, `pcie`: to its neighbours (NVLink, Infinity Fabric) and to the host, in one direction.
    - `network`: a device's share of its machine's, in one direction. An assumption: no data sheet of a device has it.
    - `launch_seconds`: until one more kernel is on its way. An assumption in the table; measured for this machine.
    - `watts`: the most that it is allowed to take.
    - `multiprocessor`: None on a CPU, whose `multiprocessors` are its cores.
    - `price_per_hour`: nobody's but the user's, by `dataclasses.replace`.
    - `source`: where its figures are written, or that they are measured. A device without one is refused.
    """

    name: str
    kind: Kind
    multiprocessors: int
    multiprocessor: Multiprocessor | None
    l2_bytes: int | None
    memory_bytes: int
    memory_bandwidth: float
    peaks: Mapping[str, float]
    link: float | None
    pcie: float | None
    network: float
    watts: float | None
    launch_seconds: float
    source: str
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise InputError(f"source: {self.name} has none; expected where its figures are written")
        if "float32" not in self.peaks:
            raise InputError(f"peaks: got {', '.join(self.peaks) or 'none'} for {self.name}; expected float32 at least")
        positive = {
            "multiprocessors": self.multiprocessors,
            "memory_bytes": self.memory_bytes,
            "memory_bandwidth": self.memory_bandwidth,
            "network": self.network,
            "launch_seconds": self.launch_seconds,
            **{f"peaks[{dtype!r}]": peak for dtype, peak in self.peaks.items()},
        }
        for name in ("l2_bytes", "link", "pcie", "watts", "price_per_hour"):
            if getattr(self, name) is not None:
                positive[name] = getattr(self, name)
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise InputError(f"{name}: got {value} for {self.name}, expected a positive number")

    def peak(self, dtype: str) -> float:
        """FLOP/s of dense products in `dtype`. A type that the device has no units for is computed as float32."""
        return self.peaks.get(dtype, self.peaks["float32"])

    def ridge(self, dtype: str) -> float:
        """FLOPs a byte from which on a product in `dtype` is bound by compute and no longer by memory.

        peak / bandwidth (Williams, Waterman and Patterson 2009, Roofline, doi 10.1145/1498765.1498785).
        """
        return self.peak(dtype) / self.memory_bandwidth
