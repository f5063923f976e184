"""What a step waits for, its points under the roof, and what would gain most: on records made up, by hand."""

from dataclasses import replace

import pytest

from verim.anatomy import Advice, Ceilings, Memory, Op, Part, Record, Timeline, advise
from verim.anatomy.ledger import Counts, ModuleFact, Overhead, Span
from verim.anatomy.roofline import alike_points, layer_points, op_points
from verim.anatomy.waits import waits_of

CEILINGS = Ceilings("cpu", 1, {"float32": 100.0, "bfloat16": 400.0}, ((2**30, 10.0),), 1e-3)
"""100 FLOP/s, 10 bytes a second, a launch of a millisecond."""


def op(name: str, module: str, seconds: float, flops: float = 0.0, size: float = 0.0, **more: object) -> Op:
    values = {"part": "forward", "overhead_seconds": 0.0, "vector_flops": 0.0, "bytes_written": size / 2, **more}
    return Op(
        name, dtype="float32", module=module, calls=1, seconds=seconds, flops=flops, bytes_read=size / 2, **values
    )  # type: ignore[arg-type]


def ledger_of(*ops: Op, spans: tuple[Span, ...] = (), parts: tuple[Part, ...] = (), **at_peak: int) -> Record:
    sums: dict[str, float] = {}
    for each in ops:
        sums[each.part] = sums.get(each.part, 0.0) + each.total_seconds
    modules = dict.fromkeys(["", *(each.module for each in ops)])
    facts = tuple(ModuleFact(name, name.rpartition(".")[2].title() or "Model", 0, 1.0) for name in modules)
    whole = (*parts, *(Part(name, seconds) for name, seconds in sums.items()))
    memory = Memory(
        peak_bytes=sum(at_peak.values()), peak_part="loss", peak_op="", peak_module="", at_peak=dict(at_peak),
        modules=(), timeline=Timeline((), {}, ()), source="observed",
    )  # fmt: skip
    return Record(
        "cpu", sum(part.seconds for part in whole), whole, ops, facts, memory, CEILINGS, Overhead(None, None),
        Counts(1, 1, 1), (), spans,
    )  # fmt: skip


def found(advice: tuple[Advice, ...], words: str) -> Advice:
    return next(each for each in advice if words in each.change)


def test_waits_are_summed_by_what_bounds_them_and_say_where() -> None:
    ledger = ledger_of(
        op("aten.mm", "a.linear", 3.0, flops=200.0, size=4.0),
        op("aten.mul", "a.norm", 5.0, size=20.0),
        op("aten.add", "b.norm", 1.0, size=10.0, overhead_seconds=0.5),
        op("aten.mul", "", 0.5, size=5.0, part="optimiser"),
    )
    memory, compute, launch = waits_of(ledger)
    assert (memory.bound, compute.bound, launch.bound) == ("memory", "compute", "launch")
    assert (memory.seconds, compute.seconds, launch.seconds) == (6.5, 3.0, 0.5)
    assert sum(wait.share for wait in (memory, compute, launch)) == pytest.approx(1)
    assert memory.places == (("Norm", 6.0), ("the optimiser", 0.5))
    assert memory.fraction == pytest.approx((2.0 + 1.0 + 0.5) / 6.5) and compute.fraction == pytest.approx(2 / 3)
    assert memory.sentence == "65 % of the step waits for memory: Norm"
    assert launch.sentence.startswith("5.0 % of the step goes to launches")


def test_a_view_is_not_bound_by_memory() -> None:
    ledger = ledger_of(op("aten.t", "a", 1.0))
    assert ledger.bound_seconds() == {"compute": 0.0, "memory": 0.0, "launch": 1.0}


def test_points_are_flops_over_bytes_and_below_their_ceilings() -> None:
    ledger = ledger_of(
        op("aten.mm", "blocks.0.linear", 4.0, flops=200.0, size=4.0),
        op("aten.mul", "blocks.0.linear", 4.0, vector_flops=40.0, size=20.0),
        op("aten.mm", "blocks.1.linear", 2.0, flops=200.0, size=4.0),
        op("aten.t", "blocks.1.linear", 2.0),
        op("aten.mul", "", 1.0, size=5.0, part="optimiser"),
    )
    first, second = layer_points(ledger)
    assert (first.name, second.name) == ("blocks.0.linear", "blocks.1.linear")
    assert first.intensity == pytest.approx(240 / 24) and first.rate == pytest.approx(240 / 8)
    assert first.ceiling == pytest.approx(240 / (2.0 + 2.0)) and first.fraction == pytest.approx(0.5)
    assert second.fraction == pytest.approx(1) and second.seconds == 2.0  # a view moves nothing
    assert not ledger.errors()
    (alike,) = alike_points(ledger)
    assert alike.name == "blocks.*.linear" and alike.intensity == pytest.approx(440 / 28)
    assert {point.name: point.flops for point in op_points(ledger)}["aten.mm"] in (200.0, 400.0)
    faster = replace(ledger, ops=(op("aten.mm", "a", 1.0, flops=200.0, size=4.0),))
    assert faster.errors()  # what lies above its ceiling is reported


def test_what_memory_bounds_gains_what_the_best_of_its_kind_reaches() -> None:
    ledger = ledger_of(
        op("aten.mul", "a", 8.0, size=20.0),  # 2 s at the ceiling: 25 %
        op("aten.add", "b", 2.0, size=10.0),  # 1 s: 50 %
    )
    gain = found(advise(ledger), "mul")
    assert gain.seconds == pytest.approx(8.0 - 2.0 / 0.5) and gain.share == pytest.approx(0.4)
    assert gain.speedup == pytest.approx(10 / 6) and gain.is_limit
    assert "25 %" in gain.reason and "add reaches 50 %" in gain.reason


def test_a_product_bound_by_arithmetic_gains_by_the_ratio_of_the_peaks() -> None:
    ledger = ledger_of(op("aten.mm", "a", 4.0, flops=200.0, size=4.0), op("aten.mul", "a", 1.0, size=10.0))
    gain = found(advise(ledger), "bfloat16")
    assert gain.seconds == pytest.approx(4.0 * (1 - 100 / 400))
    slow = replace(CEILINGS, matmul={"float32": 100.0, "bfloat16": 20.0})
    assert not [each for each in advise(ledger, slow) if "bfloat16" in each.change]


def test_a_larger_batch_shares_the_optimiser_and_the_launches_as_far_as_memory_goes() -> None:
    ops = (
        op("aten.mm", "a", 4.0, flops=400.0, size=4.0, overhead_seconds=0.4),
        op("aten._fused_adamw_", "", 2.0, size=20.0, part="optimiser"),
    )
    ledger = ledger_of(*ops, activations=100, parameters=50)
    whole = found(advise(ledger, most=9), "batch 8 times")
    assert whole.seconds == pytest.approx((2.0 + 0.4 + 1e-3) * 7 / 8) and "850 B" in whole.reason
    half = found(advise(ledger, free_bytes=150.0, most=9), "batch 2 times")
    assert half.seconds == pytest.approx((2.0 + 0.4 + 1e-3) / 2)
    assert not [each for each in advise(ledger, free_bytes=50.0, most=9) if "batch" in each.change]


def test_waiting_for_data_can_be_saved_whole() -> None:
    ledger = ledger_of(op("aten.mm", "a", 6.0, flops=600.0, size=4.0), parts=(Part("data", 3.0), Part("copy", 1.0)))
    gain = found(advise(ledger), "Make the next batch")
    assert gain.seconds == 4.0 and gain.share == 0.4 and gain.is_limit


def test_an_optimiser_in_many_ops_gains_down_to_one_pass() -> None:
    ledger = ledger_of(op("aten.mul", "", 20.0, size=100.0, part="optimiser"), parameters=10, optimiser=20)
    gain = found(advise(ledger, most=9), "fused=True")
    assert gain.seconds == pytest.approx(20.0 - (3 * 10 + 2 * 20) / 10)


def test_elementwise_ops_in_a_row_save_what_passes_between_them() -> None:
    ops = (
        op("aten.mul", "a", 2.0, size=20.0),
        op("aten.add", "a", 2.0, size=20.0, overhead_seconds=0.5),
        op("aten.mm", "a", 2.0, flops=200.0, size=4.0),
    )
    spans = (
        Span("forward", "part", 0.0, 6.5),
        *(Span(each.name, "op", 2.2 * i, 2.0, "a", each.flops, each.bytes) for i, each in enumerate(ops)),
    )
    gain = found(advise(ledger_of(*ops, spans=spans), most=9), "Fuse")
    assert gain.seconds == pytest.approx(4.0 * (2 * 10) / 40 + 0.5)
    assert gain.reason.startswith("2 such ops follow one another in 1 place.")


def test_checkpointing_costs_the_forward_pass_that_is_run_again() -> None:
    forward = op("aten.mm", "a", 2.0, flops=200.0, size=4.0)
    again = op("aten.mm", "a", 2.0, size=4.0, part="backward", recomputed_flops=100.0)
    gain = found(advise(ledger_of(forward, again), most=9), "no checkpointing")
    assert gain.seconds == pytest.approx(2.0 * 0.5)


def test_where_nothing_is_to_be_gained_nothing_is_said() -> None:
    ceilings = replace(CEILINGS, matmul={"float32": 100.0}, launch_seconds=0.0)
    ledger = replace(ledger_of(op("aten.mm", "a", 4.0, flops=400.0, size=4.0)), ceilings=ceilings)
    assert advise(ledger) == ()


def test_the_best_comes_first_and_no_more_than_are_wanted() -> None:
    ops = (
        op("aten.mul", "a", 8.0, size=20.0),
        op("aten.add", "b", 2.0, size=10.0),
        op("aten.mm", "c", 5.0, 400.0, 4.0),
    )
    every = advise(ledger_of(*ops), most=9)
    assert [each.seconds for each in every] == sorted((each.seconds for each in every), reverse=True)
    assert advise(ledger_of(*ops), most=1) == every[:1]
