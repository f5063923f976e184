"""Scan: memory banks of a GPU's shared memory, modelled and measured."""

from verim.claims.claim import Measurement, claim
from verim.claims.expected import Exactly, Goldens
from verim.ops.scan import algorithms, banks, banks_gpu

_SOURCE = "Harris et al., GPU Gems 3, section 39.2.3"


@claim(
    id="scan-banks-lose",
    area="scan",
    text="A 32-way bank conflict loses 96 % of the bandwidth of shared memory",
    source=_SOURCE,
    expected=Exactly(0.96, tolerance=0.01),
    cost=0.1,
    kind="simulated",
    remark="cut, not rounded: 31 of 32 turns are lost, 96.9 %",
)
def banks_lose() -> Measurement:
    return Measurement(banks.strided(32).lost, "share of turns lost by a warp that reads at stride 32, of 32 banks")


@claim(
    id="scan-banks-blelloch",
    area="scan",
    text="Blelloch's sweeps meet 32-way conflicts, and padding removes every conflict",
    source=_SOURCE,
    expected=Goldens({"without padding": 32.0, "padded": 1.0}),
    cost=0.5,
    kind="simulated",
)
def banks_of_blelloch() -> Measurement:
    scan = algorithms.blelloch(int.__add__, range(1024), 0)
    worst = {
        name: float(max(step.worst for step in banks.conflicts(scan, padded=padded)))
        for name, padded in (("without padding", False), ("padded", True))
    }
    return Measurement(worst, "turns of the slowest access while 1024 numbers are scanned, 32 banks, traced")


@claim(
    id="scan-banks-measured",
    area="scan",
    text="On a GPU reads at stride 32 take 32 turns, and one with padding",
    source=_SOURCE,
    expected=Goldens({"without padding": 32.0, "padded": 1.0}, relative=0.1),
    cost=10,
    kind="measured",
    gpu=True,
)
def banks_measured() -> Measurement:
    turns = {("padded" if one.padded else "without padding"): one.turns for one in banks_gpu.measure_strides((32,))}
    return Measurement(turns, "time of dependent reads of shared memory over that at stride 1, full multiprocessors")
