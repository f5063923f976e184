"""The devices of a plan: how many, in which machines, and the rates that a training step reaches on them."""

from dataclasses import dataclass, replace

from verim.anatomy.devices import Device
from verim.errors import InputError
from verim.train.parallel import ParallelConfig
from verim.train.parallel.config import DIMENSIONS
from verim.train.precision import Kind

MACHINE_DEVICES = 8
"""In one machine, as in every data centre's."""
PRODUCT_SHARE = 0.7
"""Of a data sheet's dense peak, what large products reach: an assumption, as the next three are."""
BANDWIDTH_SHARE = 0.85
LINK_SHARE = 0.75
MEMORY_SHARE = 0.92
"""Of a device's memory, what tensors can have: the rest is the driver's, the libraries' and the allocator's gaps."""
_MESSAGE_SECONDS = 10e-6
_HOST_BANDWIDTH = 25e9
"""Of the CPU's memory, a device's share: a machine's 200 GB/s among eight."""


@dataclass(frozen=True)
class Fleet:
    """`count` devices of one kind, `per_machine` of them in a machine, computing in `precision`."""

    device: Device
    count: int
    precision: Kind = "bfloat16"
    per_machine: int = MACHINE_DEVICES

    def __post_init__(self) -> None:
        for name in ("count", "per_machine"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")

    @property
    def flops(self) -> float:
        """FLOP/s of a device's products, as large ones reach them; a measured peak is one that was reached."""
        share = 1.0 if self._is_measured else PRODUCT_SHARE
        return share * self.device.peak("float32" if self.precision == "float32" else "bfloat16")

    @property
    def bandwidth(self) -> float:
        """Bytes a second of its memory."""
        return (1.0 if self._is_measured else BANDWIDTH_SHARE) * self.device.memory_bandwidth

    @property
    def memory_bytes(self) -> float:
        """Of a device, for tensors."""
        return MEMORY_SHARE * self.device.memory_bytes

    @property
    def can_offload(self) -> bool:
        return self.device.kind != "cpu" and self.device.pcie is not None

    @property
    def host_link(self) -> float:
        """Bytes a second to the CPU, in one direction."""
        assert self.device.pcie is not None, "asked of devices that can offload alone"
        return LINK_SHARE * self.device.pcie

    @property
    def host_bandwidth(self) -> float:
        """Bytes a second of the CPU's memory, a device's share."""
        return _HOST_BANDWIDTH

    @property
    def latency(self) -> float:
        """Seconds until an exchange begins."""
        return _MESSAGE_SECONDS

    def link(self, parallel: ParallelConfig, dimensions: tuple[str, ...]) -> tuple[float, str]:
        """Bytes a second that a rank sends over `dimensions`, and whether over the "link" of a machine or "network".

        Ranks are neighbours in the last of `DIMENSIONS`; an exchange is as fast as the slowest hop of its ring.
        """
        reach = 1
        for number, name in enumerate(DIMENSIONS):
            if name in dimensions and getattr(parallel, name) > 1:
                reach = 1
                for inner in DIMENSIONS[number:]:
                    reach *= getattr(parallel, inner)
                break
        if reach > self.per_machine:
            return LINK_SHARE * self.device.network, "network"
        return LINK_SHARE * (self.device.link or self.device.pcie or self.device.network), "link"

    def at(self, count: int) -> "Fleet":
        """As many devices of the kind as `count`."""
        return replace(self, count=count)

    @property
    def _is_measured(self) -> bool:
        return self.device.source.startswith("measured")


def precision_of(device: Device) -> Kind:
    """In what a plan computes: bfloat16 under autocast where the device has units for it, as ranks can."""
    return "bfloat16" if device.kind != "cpu" and "bfloat16" in device.peaks else "float32"
