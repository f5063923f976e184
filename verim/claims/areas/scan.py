"""Scan: work and depth of the classical algorithms, equal results, speed, and the scan inside Mamba."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from verim import ops
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost, Between, Exactly, Goldens
from verim.claims.timing import time_ratio
from verim.ops.scan import algorithms

_LENGTH = 1024
_HILLIS = "Hillis and Steele 1986, p. 1172"
_BLELLOCH = "Blelloch 1990, section 1.2"


def _add(left: int, right: int) -> int:
    return left + right


def _affine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The map h → a h + b of `right` after that of `left`."""
    return left[0] * right[0], left[1] * right[0] + right[1]


@claim(
    id="scan-depth",
    area="scan",
    text="With a thread a place, n places take log₂ n steps (Hillis and Steele) or 2 log₂ n (Blelloch)",
    source=f"{_HILLIS}; {_BLELLOCH}",
    expected=Goldens({"Hillis-Steele": 1.0, "Blelloch": 2.0}),
    cost=0.1,
    kind="measured",
)
def depth() -> Measurement:
    steps = {
        "Hillis-Steele": algorithms.hillis_steele(_add, range(_LENGTH)).depth,
        "Blelloch": algorithms.blelloch(_add, range(_LENGTH), 0).depth,
    }
    per_level = {name: count / math.log2(_LENGTH) for name, count in steps.items()}
    return Measurement(per_level, f"dependent steps over log₂ n, counted while scanning {_LENGTH} numbers")


@claim(
    id="scan-work-hillis-steele",
    area="scan",
    text="The scan of Hillis and Steele takes n log₂ n additions",
    source="Harris et al., GPU Gems 3, section 39.2.1",
    expected=Between(0.85, 1.0),
    cost=0.5,
    kind="measured",
    remark="rounded up: places with nothing before them add nothing, so it is n log₂ n − (n − 1), a tenth less here",
)
def work_of_hillis_steele() -> list[Measurement]:
    found = []
    for length in (1 << 8, 1 << 11, 1 << 14):
        work = algorithms.hillis_steele(_add, range(length)).work
        found.append(
            Measurement(work / (length * math.log2(length)), f"additions over n log₂ n, counted, n = {length}")
        )
    return found


@claim(
    id="scan-work-blelloch",
    area="scan",
    text="Blelloch's scan takes 2 (n − 1) additions",
    source=_BLELLOCH,
    expected=Exactly(2.0),
    cost=0.5,
    kind="measured",
)
def work_of_blelloch() -> list[Measurement]:
    found = []
    for length in (1 << 4, 1 << 9, 1 << 14):
        work = algorithms.blelloch(_add, range(length), 0).work
        found.append(Measurement(work / (length - 1), f"additions over n − 1, counted, n = {length}"))
    return found


@claim(
    id="scan-equal-results",
    area="scan",
    text="All scan algorithms give the same prefixes",
    source=f"{_BLELLOCH}; {_HILLIS}",
    expected=Exactly(0.0),
    cost=0.5,
    kind="measured",
)
def equal_results() -> Measurement:
    x = torch.randint(-100, 100, (7, 1000))
    expected = x.cumsum(1)
    wrong = {
        name: float((ops.associative_scan(torch.add, x, 1, algorithm=name) != expected).sum())
        for name in ("sequential", "hillis_steele", "blelloch", "chunked")
    }
    wrong["prefix_sum"] = float((ops.prefix_sum(x, 1) != expected).sum())
    taught = algorithms.blelloch(_add, x[0].tolist(), 0).inclusive
    return Measurement(
        {**wrong, "as taught": float(list(taught) != expected[0].tolist())},
        "places that differ from torch.cumsum, 7 × 1000 random integers",
    )


@claim(
    id="scan-needs-no-commutativity",
    area="scan",
    text="A scan needs an associative operation, which need not commute",
    source="Blelloch 1990, section 1.1",
    expected=Exactly(0.0),
    cost=0.1,
    kind="measured",
)
def needs_no_commutativity() -> Measurement:
    letters = "associativity"
    prefixes = [letters[: end + 1] for end in range(len(letters))]
    scans = {
        "Hillis-Steele": algorithms.hillis_steele(lambda left, right: left + right, letters).inclusive,
        "Blelloch": algorithms.blelloch(lambda left, right: left + right, letters, "").inclusive,
    }
    wrong = {name: float(sum(a != b for a, b in zip(found, prefixes, strict=True))) for name, found in scans.items()}
    return Measurement(wrong, f"wrong prefixes of the {len(letters)} letters of a word, joined")


@claim(
    id="scan-mamba-is-a-scan",
    area="scan",
    text="Mamba's selective scan is the same scan with an affine operator",
    source="Gu and Dao 2023, arXiv 2312.00752, section 3.3.2; Blelloch 1990, section 1.4",
    expected=AtMost(1e-5),
    cost=1,
    kind="measured",
)
def mamba_is_a_scan() -> Measurement:
    batch, length, channels, state = 2, 301, 3, 4
    u, B, C = (torch.randn(batch, length, n) for n in (channels, state, state))
    delta, A = torch.rand(batch, length, channels), -torch.rand(channels, state)
    decay = (delta[..., None] * A).double().exp()
    drive = (delta * u)[..., None].double() * B[:, :, None]
    _, h = ops.associative_scan(_affine, (decay, drive), dim=1)
    by_scan = torch.einsum("blcn,bln->blc", h, C.double())
    ours = ops.selective_scan(u, delta, A, B, C)
    return Measurement(
        float((ours - by_scan).norm() / by_scan.norm()),
        f"relative difference of selective_scan in float32 from associative_scan in float64, {batch} × {length} × "
        f"{channels} channels × {state} states",
    )


@claim(
    id="scan-crossover",
    area="scan",
    text="The work-efficient scan is faster than that of Hillis and Steele",
    source="Harris et al., GPU Gems 3, section 39.2.2",
    expected=AtLeast(1.0),
    cost=50,
    kind="measured",
    remark="holds from the length on at which work counts more than calls: the crossover",
)
def crossover(lengths: Sequence[int] = tuple(1 << power for power in range(10, 25, 2))) -> list[Measurement]:
    found = []
    for length in lengths:
        x = torch.rand(length)
        naive, efficient = (
            partial(ops.associative_scan, torch.add, x, 0, algorithm=algorithm)
            for algorithm in ("hillis_steele", "blelloch")
        )
        ratio = time_ratio(naive, efficient, rounds=7 if length < 1 << 22 else 3)
        found.append(Measurement(ratio.value, f"time of Hillis-Steele over Blelloch's, n = {length}", ratio.interval))
    return found


@claim(
    id="scan-speed",
    area="scan",
    text="The chunked scan of the cores beats the library's running sum at every length",
    source="goal of this project, section on the scan; torch.cumsum",
    expected=AtLeast(1.0),
    cost=15,
    kind="measured",
)
def speed(lengths: Sequence[int] = tuple(1 << power for power in range(10, 25, 2))) -> list[Measurement]:
    found = []
    for length in lengths:
        x = torch.rand(length)
        ratio = time_ratio(partial(torch.cumsum, x, 0), partial(ops.prefix_sum, x, 0))
        conditions = f"time of torch.cumsum over verim.ops.prefix_sum's, float32, n = {length}"
        found.append(Measurement(ratio.value, conditions, ratio.interval))
    return found
