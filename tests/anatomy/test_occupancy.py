"""Occupancy against NVIDIA's calculator, waves against a simulation, attention's traffic against counted loops."""

import heapq
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.anatomy.devices import device, devices, this_machine
from verim.anatomy.io import (
    Tiles,
    Traffic,
    standard_attention,
    tiled_attention,
    tiled_attention_by_queries,
    tiles_of,
)
from verim.anatomy.occupancy import occupancy, product_waves, waves
from verim.anatomy.transfers import measure_transfers, transfers
from verim.errors import InputError


@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks", "fraction", "limited_by"),
    [
        ("a100", 256, 32, 0, 8, 1.0, ("warps", "registers")),
        ("a100", 1024, 64, 0, 1, 0.5, ("registers",)),
        ("h100", 128, 40, 0, 12, 0.75, ("registers",)),  # 12.8 warps a scheduler: 12
        ("h100", 32, 16, 0, 32, 0.5, ("blocks",)),
        ("a100", 256, 32, 48 * 1024, 3, 0.375, ("shared memory",)),  # 49 KiB with what is reserved
        ("a100", 128, 255, 0, 2, 0.125, ("registers",)),
        ("rtx3090", 1024, 32, 0, 1, 32 / 48, ("warps",)),
        ("rtx3090", 64, 16, 0, 16, 32 / 48, ("blocks",)),
        ("rtx4090", 64, 16, 0, 24, 1.0, ("warps", "blocks")),
        ("h100", 128, 168, 227 * 1024, 1, 4 / 64, ("shared memory",)),
        ("a100", 128, 32, 164 * 1024, 0, 0.0, ("shared memory",)),  # a block may have 163 KiB
        ("t4", 256, 32, 32 * 1024, 2, 0.5, ("shared memory",)),
        ("v100", 256, 33, 0, 6, 0.75, ("registers",)),  # 40 of them, by units of 256 a warp
        ("mi300x", 256, 128, 0, 4, 0.5, ("registers",)),  # four wavefronts of 64 each to a SIMD
    ],
)
def test_goldens_of_the_occupancy_calculator(
    name: str, threads: int, registers: int, shared: int, blocks: int, fraction: float, limited_by: tuple[str, ...]
) -> None:
    found = occupancy(device(name), threads, registers, shared)
    assert (found.blocks, found.limited_by) == (blocks, limited_by)
    assert found.fraction == pytest.approx(fraction)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(devices()),
    threads=st.integers(1, 1024),
    registers=st.integers(1, 255),
    shared=st.integers(0, 64 * 1024),
)
def test_nothing_is_handed_out_twice_and_one_more_would_not_fit(
    name: str, threads: int, registers: int, shared: int
) -> None:
    has = device(name).multiprocessor
    assert has is not None
    found = occupancy(device(name), threads, registers, shared)
    warps = math.ceil(threads / has.warp)

    def fits(blocks: int) -> bool:
        """Warps dealt one by one to the schedulers, registers from each one's own part."""
        own = [has.registers // has.warp_unit] * has.warp_unit
        a_warp = math.ceil(registers * has.warp / has.register_unit) * has.register_unit
        for warp in range(blocks * warps):
            own[warp % has.warp_unit] -= a_warp
        a_block = math.ceil((shared + has.reserved_shared_bytes) / has.shared_unit) * has.shared_unit
        return (
            min(own) >= 0
            and blocks * a_block <= has.shared_bytes
            and blocks * warps <= has.warps
            and blocks <= has.blocks
            and (not blocks or shared <= has.block_shared_bytes)
        )

    assert fits(found.blocks)
    assert not fits(found.blocks + 1)
    assert found.warps == found.blocks * warps
    for name_of_limit, count in found.limits.items():
        assert (count == found.blocks) == (name_of_limit in found.limited_by)


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "named"),
    [(0, 32, 0, "threads"), (1025, 32, 0, "threads"), (32, 256, 0, "registers"), (32, 32, -1, "shared_bytes")],
)
def test_a_block_that_cannot_be_is_refused(threads: int, registers: int, shared: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        occupancy(device("a100"), threads, registers, shared)


def test_a_processor_has_no_occupancy() -> None:
    here = this_machine()
    if here.kind == "cpu":
        with pytest.raises(InputError, match="expected a GPU"):
            occupancy(here, 256, 32)


@settings(max_examples=60, deadline=None)
@given(blocks=st.integers(1, 500), resident=st.integers(1, 4), multiprocessors=st.integers(1, 40))
def test_waves_are_those_of_a_queue(blocks: int, resident: int, multiprocessors: int) -> None:
    """Blocks of one second go to whichever place is free first."""
    places = [0] * (resident * multiprocessors)
    for _ in range(blocks):
        heapq.heapreplace(places, places[0] + 1)
    found = waves(blocks, resident, multiprocessors)
    assert found.count == max(places)
    assert found.efficiency == pytest.approx(blocks / (len(places) * max(places)))
    assert found.tail == pytest.approx(sum(end == max(places) for end in places) / len(places))


def test_a_small_batch_leaves_multiprocessors_idle() -> None:
    a100 = device("a100")
    shares = [product_waves(a100, rows, 4096).efficiency for rows in (64, 128, 256, 432 * 128)]
    assert shares[0] == pytest.approx(32 / 108 / 2)
    assert shares[0] < shares[1] < shares[2] < shares[3] == 1.0
    with pytest.raises(InputError, match="blocks"):
        waves(0, 1, 1)


class Counted:
    """A matrix in the device's memory: what is loaded and stored is counted."""

    def __init__(self, values: Tensor, counts: dict[str, int]) -> None:
        self.values, self._counts = values, counts

    def __getitem__(self, place: Any) -> Tensor:
        loaded = self.values[place]
        self._counts["read"] += loaded.numel()
        return loaded

    def __setitem__(self, place: Any, stored: Tensor) -> None:
        self._counts["written"] += stored.numel()
        self.values[place] = stored


def _memory(length: int, head_dim: int) -> tuple[dict[str, int], list[Counted], Tensor]:
    counts = {"read": 0, "written": 0}
    generator = torch.Generator().manual_seed(length * 101 + head_dim)
    q, k, v = (torch.randn(length, head_dim, generator=generator, dtype=torch.float64) for _ in range(3))
    others = [torch.zeros(length, head_dim, dtype=torch.float64), torch.zeros(length, dtype=torch.float64)]
    largest = torch.full((length,), -math.inf, dtype=torch.float64)
    expected = torch.softmax(q @ k.T, -1) @ v
    return counts, [Counted(tensor, counts) for tensor in (q, k, v, *others, largest)], expected


SHAPES = [(1, 4, 16), (17, 4, 40), (64, 8, 64), (50, 16, 200), (96, 8, 4000)]


@pytest.mark.parametrize(("length", "head_dim", "fast_memory"), SHAPES)
def test_traffic_of_standard_attention_is_that_of_its_loop(length: int, head_dim: int, fast_memory: int) -> None:
    counts, (q, k, v, out, _, _), expected = _memory(length, head_dim)
    scores = Counted(torch.empty(length, length, dtype=torch.float64), counts)
    shares = Counted(torch.empty(length, length, dtype=torch.float64), counts)
    scores[:] = q[:] @ k[:].T
    shares[:] = torch.softmax(scores[:], -1)
    out[:] = shares[:] @ v[:]
    torch.testing.assert_close(out.values, expected)
    assert standard_attention(length, head_dim) == Traffic(**counts)


@pytest.mark.parametrize(("length", "head_dim", "fast_memory"), SHAPES)
def test_traffic_of_tiled_attention_is_that_of_its_loop(length: int, head_dim: int, fast_memory: int) -> None:
    """Algorithm 1 of the paper, line by line."""
    counts, (q, k, v, out, total, largest), expected = _memory(length, head_dim)
    tiles = tiles_of(head_dim, fast_memory)
    for key_begin in range(0, length, tiles.keys):
        columns = slice(key_begin, key_begin + tiles.keys)
        keys, values = k[columns], v[columns]
        for begin in range(0, length, tiles.queries):
            rows = slice(begin, begin + tiles.queries)
            queries, result, sums, maxima = q[rows], out[rows], total[rows], largest[rows]
            scores = queries @ keys.T
            maximum = torch.maximum(maxima, scores.amax(-1))
            shares = torch.exp(scores - maximum[:, None])
            kept = torch.exp(maxima - maximum) * sums
            summed = kept + shares.sum(-1)
            out[rows] = (kept[:, None] * result + shares @ values) / summed[:, None]
            total[rows], largest[rows] = summed, maximum
    torch.testing.assert_close(out.values, expected)
    assert tiled_attention(length, head_dim, fast_memory) == Traffic(**counts)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "queries", "keys"), [(1, 1, 1), (17, 4, 8), (64, 16, 16), (50, 64, 7)])
def test_traffic_by_queries_is_that_of_its_loop(length: int, queries: int, keys: int, causal: bool) -> None:
    counts, (q, k, v, out, logarithm, _), expected = _memory(length, 8)
    if causal:
        hidden = torch.ones(length, length).triu(1).bool()
        expected = torch.softmax((q.values @ k.values.T).masked_fill(hidden, -math.inf), -1) @ v.values
    for begin in range(0, length, queries):
        rows = slice(begin, min(begin + queries, length))
        query, scores, values = q[rows], [], []
        for key_begin in range(0, rows.stop if causal else length, keys):
            columns = slice(key_begin, key_begin + keys)
            scores.append(query @ k[columns].T)
            values.append(v[columns])
        joined = torch.cat(scores, -1)
        if causal:
            joined = joined.masked_fill(hidden[rows, : joined.shape[1]], -math.inf)
        out[rows] = torch.softmax(joined, -1) @ torch.cat(values)
        logarithm[rows] = torch.logsumexp(joined, -1)
    torch.testing.assert_close(out.values, expected)
    assert tiled_attention_by_queries(length, 8, Tiles(queries, keys), causal) == Traffic(**counts)


def test_theorem_2() -> None:
    """Standard attention grows with N², tiled with N² d² / M: half the fast memory, twice the traffic."""
    length, head_dim, fast = 2**14, 64, 2**15
    assert standard_attention(length, head_dim).total == pytest.approx(4 * length**2, rel=0.02)
    tiled = tiled_attention(length, head_dim, fast).total
    assert tiled_attention(length, head_dim, fast // 2).total == pytest.approx(2 * tiled, rel=0.02)
    assert tiled_attention(2 * length, head_dim, fast).total == pytest.approx(4 * tiled, rel=0.02)
    assert tiled == pytest.approx(12 * length**2 * head_dim**2 / fast, rel=0.05)
    with pytest.raises(InputError, match="fast_memory"):
        tiled_attention(64, 64, 255)
    with pytest.raises(InputError, match="length"):
        standard_attention(0, 64)


def test_copies_to_a_device() -> None:
    a100 = device("a100")
    found = transfers(a100, 272 * 10**6, computing=4e-3, host_copy=20e9)
    assert found.pinned == pytest.approx(1e-5 + 0.01)
    assert found.pageable == pytest.approx(found.pinned + 0.0272)
    assert found.exposed == pytest.approx(0.00601)
    assert transfers(a100, 272, computing=1.0, host_copy=20e9).exposed == 0.0
    assert found.source == "computed"
    with pytest.raises(InputError, match="size"):
        transfers(a100, -1, host_copy=20e9)


def test_copies_are_measured_where_there_is_a_device() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            measure_transfers(1000)
        return
    found = measure_transfers(2**20)
    assert found.source == "measured"
    assert min(found.pageable, found.pinned) > 0
