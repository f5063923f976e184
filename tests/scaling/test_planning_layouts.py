"""Layouts: what is enumerated, what each costs, and that the one named first is the best of all."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.anatomy import Workload, predict_memory
from verim.anatomy.devices import device
from verim.models import LanguageModel
from verim.scaling.planning.cost import Job, Layout, cost, transfers
from verim.scaling.planning.fleet import Fleet
from verim.scaling.planning.layouts import Ranking, divisions, rank, unsharded
from verim.scaling.planning.sizes import size_of
from verim.train.parallel import ParallelConfig
from verim.train.parallel.config import DIMENSIONS
from verim.train.parallel.formulas import memory, traffic
from verim.train.parallel.splits import divisors

H100 = device("h100")


def fleet(count: int = 8, gigabytes: float = 80.0, per_machine: int = 8) -> Fleet:
    return Fleet(replace(H100, memory_bytes=round(gigabytes * 1e9)), count, "bfloat16", per_machine)


def job(architecture: str = "transformer", width: int = 256, batch: int = 32, length: int = 256) -> Job:
    return Job(size_of(architecture, width, 512, length), batch)


def everything(work: Job, on: Fleet) -> list[float]:
    """Seconds of all layouts that fit, by brute force over every field."""
    found = []
    sizes = [each for each in itertools.product(divisors(on.count), repeat=6) if math.prod(each) == on.count]
    recompute, schedules, rows = ("none", "selective", "full"), ("1f1b", "interleaved"), divisors(work.batch)
    for dimensions in sizes:
        named = dict(zip(DIMENSIONS, dimensions, strict=True))
        several = {name: size > 1 for name, size in named.items()}
        for zero, sequence, what, schedule, micro, parts in itertools.product(
            (1, 2, 3) if several["shard"] else (1,),
            (False, True) if several["tensor"] else (False,),
            recompute,
            schedules if several["pipeline"] else ("1f1b",),
            rows if several["pipeline"] else (1,),
            (1,) if several["pipeline"] else rows,
        ):
            parallel = ParallelConfig(
                **named,  # type: ignore[arg-type]
                zero=zero,  # type: ignore[arg-type]
                sequence_parallel=sequence,
                activation_checkpointing=what,  # type: ignore[arg-type]
                pipeline_schedule=schedule,  # type: ignore[arg-type]
                micro_batches=micro,
            )
            try:
                parallel.check(work.size.config, on.count, work.batch, work.size.length)
            except ValueError:
                continue
            if work.batch // parallel.rows % parts or (
                schedule == "interleaved"
                and (micro % min(named["pipeline"], micro) or 2 * named["pipeline"] > work.size.config.blocks)
            ):
                continue
            each = cost(work, Layout(parallel, parts), on)
            if each.memory_bytes <= on.memory_bytes:
                found.append(each.step_seconds)
    return found


@settings(max_examples=12, deadline=None)
@given(
    architecture=st.sampled_from(["transformer", "mamba"]),
    count=st.sampled_from([1, 2, 6, 8, 16]),
    batch=st.sampled_from([8, 24, 48]),
    gigabytes=st.sampled_from([0.12, 0.4, 80.0]),
)
def test_the_best_is_the_best_of_all(architecture: str, count: int, batch: int, gigabytes: float) -> None:
    work, on = job(architecture, batch=batch), fleet(count, gigabytes)
    all_seconds = everything(work, on)
    best = rank(work, on).best
    if all_seconds:
        assert best is not None
        assert best.step_seconds == pytest.approx(min(all_seconds), rel=1e-12)
        assert not best.layout.parallel.offload
    else:
        assert best is None or best.layout.parallel.offload


@pytest.mark.parametrize("count", [1, 8, 12])
def test_every_layout_multiplies_to_the_devices_and_is_accepted(count: int) -> None:
    work = job(batch=24)
    ranking = rank(work, fleet(count))
    for found in (*ranking.fitting, *ranking.too_large):
        parallel = found.layout.parallel
        assert parallel.ranks == count
        parallel.check(work.size.config, count, work.batch, work.size.length)
        rows = work.batch // parallel.rows
        assert rows % found.layout.accumulation == 0 and rows % parallel.micro_batches == 0
    accepted = len(ranking.fitting) + len(ranking.too_large)
    assert accepted + sum(times for _, times in ranking.refused) == len(list(divisions(count)))
    assert [each.step_seconds for each in ranking.fitting] == sorted(each.step_seconds for each in ranking.fitting)


def test_divisions_are_all_factorisations_once() -> None:
    found = list(divisions(12))
    assert len(set(found)) == len(found) == 21 * 6  # 2² in six places, times 3 in six
    assert all(division.ranks == 12 for division in found)


@pytest.mark.parametrize("architecture", ["transformer", "mamba"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_states_are_those_of_the_formula(architecture: str, zero: int) -> None:
    work = job(architecture, 320)
    with torch.device("meta"):
        model = LanguageModel(work.size.config)
    for shard, tensor in ((1, 1), (4, 1), (2, 4)):
        parallel = ParallelConfig(shard=shard, tensor=tensor, zero=zero)  # type: ignore[arg-type]
        found, formula = cost(work, Layout(parallel), fleet(parallel.ranks)).memory, memory(model, parallel)
        assert found["weights"] == formula.weights and found["gradients"] == formula.gradients
        assert found["gathered"] == formula.gathered
        assert found["optimiser"] == pytest.approx(formula.state, rel=0.25 if zero == 1 else 1e-9)


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(data=4),
        ParallelConfig(data=2, shard=4, zero=3),
        ParallelConfig(shard=4, zero=2, tensor=2),
        ParallelConfig(data=2, shard=2, zero=1),
        ParallelConfig(tensor=4, sequence_parallel=True),
    ],
    ids=["data", "zero3", "tensor", "zero1", "sequence"],
)
@pytest.mark.parametrize("architecture", ["transformer", "mamba"])
def test_what_is_sent_is_what_the_formula_says(architecture: str, parallel: ParallelConfig) -> None:
    work = replace(job(architecture, 320), precision="float32")
    with torch.device("meta"):
        model = LanguageModel(work.size.config)
    formula = sum(traffic(model, parallel, work.batch, work.size.length).values())
    assert sum(sent.size for sent in transfers(work, Layout(parallel))) == pytest.approx(formula, rel=0.01)


def test_memory_falls_with_shard_and_seconds_do_not() -> None:
    work = job(width=512, batch=64)
    for zero in (1, 2, 3):
        configs = [ParallelConfig(data=8 // shard, shard=shard, zero=zero) for shard in (1, 2, 4, 8)]  # type: ignore[arg-type]
        held = [cost(work, Layout(config), fleet()).memory_bytes for config in configs[1:]]
        assert held == sorted(held, reverse=True) and held[0] > held[-1]
    copies, sharded = (cost(work, Layout(config), fleet()) for config in (ParallelConfig(data=8), configs[-1]))
    assert sharded.memory_bytes < copies.memory_bytes


def test_memory_of_one_device_is_near_what_anatomy_imagines() -> None:
    work = replace(job(width=512, batch=8, length=256), precision="float32")
    found = cost(work, Layout(ParallelConfig()), Fleet(H100, 1, "float32")).memory_bytes
    imagined = predict_memory(work.size.config, Workload(8, 256)).peak_bytes
    assert found == pytest.approx(imagined, rel=0.1)


def test_recomputation_and_parts_hold_less_and_take_longer() -> None:
    work = job(width=512, batch=64)
    costs = [
        cost(work, Layout(ParallelConfig(activation_checkpointing=what)), fleet(1))  # type: ignore[arg-type]
        for what in ("none", "selective", "full")
    ]
    assert [each.memory_bytes for each in costs] == sorted((each.memory_bytes for each in costs), reverse=True)
    assert [each.step_seconds for each in costs] == sorted(each.step_seconds for each in costs)
    parts = [cost(work, Layout(ParallelConfig(), count), fleet(1)) for count in (1, 4, 16)]
    assert [each.memory_bytes for each in parts] == sorted((each.memory_bytes for each in parts), reverse=True)
    assert parts[-1].step_seconds >= parts[0].step_seconds


def test_the_bubble_is_that_of_the_pipeline() -> None:
    work = job(width=512, batch=64)
    found = cost(work, Layout(ParallelConfig(pipeline=4, micro_batches=8)), fleet(4)).seconds
    busy = found["products"] + found["elements"] + found["recomputation"]
    assert found["bubble"] / (busy + found["bubble"]) == pytest.approx(3 / 11)


def test_exchanges_between_machines_take_the_network() -> None:
    work = job(width=1024, batch=64)
    near = cost(work, Layout(ParallelConfig(tensor=8)), fleet(8)).seconds
    far = cost(work, Layout(ParallelConfig(tensor=8)), fleet(8, per_machine=4)).seconds
    assert near["link"] > 0 == near["network"] and far["network"] > near["link"]
    assert far["link"] == 0


def test_70_billion_parameters_fit_on_8_devices_only_with_the_cpu() -> None:
    work = Job(size_of("transformer", 7168, 32_000, 2048), 512)
    assert 6.8e10 < work.size.total < 7.2e10
    assert unsharded(work, fleet()).memory_bytes > 16 * work.size.total
    ranking = rank(work, fleet())
    assert ranking.best is not None and ranking.best.layout.parallel.offload
    assert ranking.best.seconds["host"] > 0
    assert all("memory: " in ranking.why(each) for each in ranking.too_large)


def test_where_nothing_fits_nothing_is_best() -> None:
    ranking = rank(job(width=1024), fleet(1, 0.01))
    assert ranking.best is None and ranking.fitting == ()
    assert ranking.losers()[0][0] == "memory"


def test_losers_say_by_how_much() -> None:
    ranking: Ranking = rank(job(width=512, batch=64), fleet(8, 1.2))
    assert ranking.why(ranking.fitting[0]) == "the fastest that fits"
    assert sum(times for _, times, _ in ranking.losers()) == len(ranking.fitting[5:]) + len(ranking.too_large)
    assert all(figure for _, _, figure in ranking.losers())
