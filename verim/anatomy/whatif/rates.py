"""What an op takes on a device of the table: the most of compute, bytes and launch, at efficiencies that are stated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from verim.anatomy.devices import Device
from verim.anatomy.ledger import Bound, Op

Work = Literal["product", "tiled", "kernel", "rest"]
"""Matrix products; kernels that make products of tiles (attention, Mamba-2's dual form, the fused loss); other kernels
of ours (scans, convolutions, norms); what is left."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of all calls of an op: the likely ones, and between which they should lie."""

    seconds: float
    low: float
    high: float
    bound: Bound


class Rates(Protocol):
    """What turns an op's calls, FLOPs and bytes into seconds; as a text it says what they rest on."""

    def estimate(self, op: Op) -> Estimate: ...


@dataclass(frozen=True)
class Share:
    """Of what a data sheet promises: at worst, likely, at best."""

    low: float
    likely: float
    high: float


COMPUTE: Mapping[Work, Share] = {
    "product": Share(0.40, 0.65, 0.85),
    "tiled": Share(0.25, 0.45, 0.70),
    "kernel": Share(0.15, 0.35, 0.60),
    "rest": Share(0.15, 0.35, 0.60),
}
"""Of the dense peak; kernels of ours and elementwise work, of float32's, as they run on the ordinary units.

Assumptions. As a measure, FlashAttention-2 reaches 0.50 to 0.73 of an A100's peak, 0.35 of an H100's (arXiv
2307.08691 and 2407.08608, abstracts), its backward pass less.
"""
BANDWIDTH = Share(0.60, 0.80, 0.92)
"""Of the memory's bandwidth. An assumption; scans of the best libraries reach 0.93 on an A100."""
LAUNCH = Share(2.0, 1.0, 0.6)
"""Of the device's `launch_seconds`, which are themselves assumed."""


def work_of(name: str) -> Work:
    """Which kind of work an operator is ("aten.mm")."""
    if any(part in name for part in _TILED):
        return "tiled"
    if name.startswith("verim."):
        return "kernel"
    return "product" if name.removeprefix("aten.") in _PRODUCTS else "rest"


_TILED = ("attention", "dual", "linear_cross_entropy")
_PRODUCTS = frozenset(
    {
        "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "linear", "_grouped_mm", "convolution",
        "convolution_backward", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "_scaled_mm",
    }
)  # fmt: skip


@dataclass(frozen=True)
class TableRates:
    """Those of a device that is not here, from its row of the table."""

    device: Device

    def __str__(self) -> str:
        return (
            f"the data sheet of {self.device.name}, of whose peaks assumed shares are reached, from worst to best "
            "(verim.anatomy.whatif.rates); not back-tested on it"
        )

    def estimate(self, op: Op) -> Estimate:
        """`op.seconds` are not read: they are what is asked for."""
        likely, bound = self._seconds(op, "likely")
        return Estimate(likely, self._seconds(op, "high")[0], self._seconds(op, "low")[0], bound)

    def _seconds(self, op: Op, of: Literal["low", "likely", "high"]) -> tuple[float, Bound]:
        work, device = work_of(op.name), self.device
        peak = device.peak(op.dtype if work in ("product", "tiled") else "float32")
        moves_or_computes = op.bytes or op.hardware_flops
        limits: dict[Bound, float] = {
            "compute": op.hardware_flops / (getattr(COMPUTE[work], of) * peak),
            "memory": op.bytes / (getattr(BANDWIDTH, of) * device.memory_bandwidth),
            "launch": getattr(LAUNCH, of) * device.launch_seconds * op.calls if moves_or_computes else 0.0,
        }
        bound = max(limits, key=lambda name: limits[name])
        return limits[bound], bound
