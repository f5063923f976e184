"""The ladder on made-up speeds: it fits into its time, brackets what it should, and says when it cannot."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.models import ARCHITECTURES, LanguageModel, architecture_config
from verim.scaling.ladder import (
    LEAST_STRETCH,
    REPEATED_RUNGS,
    RUNG_RATIO,
    SIZES,
    Ladder,
    RunSpec,
    expected_seconds,
    fit_ladder,
    makespan,
    next_size,
)
from verim.scaling.speed import WIDTHS, Candidate, measure_width
from verim.train.rules import LENGTH


def made_up(architecture: str, flops_per_second: float) -> list[Candidate]:
    """Candidates of real sizes with speeds as if every size reached the same FLOP/s."""
    sizes = []
    for width in WIDTHS[:12]:
        config = architecture_config(architecture, width)
        model = LanguageModel(config)
        counts, flops = model.parameter_count(), model.flops(LENGTH)
        second = flops * LENGTH / flops_per_second
        sizes.append(
            Candidate(
                architecture,
                width,
                config.depth,
                None,
                counts.non_embedding,
                counts.total,
                flops,
                1,
                4 * second,
                16 * second,
            )
        )
    return sizes


SIZES_OF = {name: made_up(name, 2e10) for name in ARCHITECTURES}


@settings(max_examples=25, deadline=None)
@given(seconds=st.floats(100, 1e6), workers=st.integers(1, 64), seed=st.integers(0, 5))
def test_ladder_fits_its_time_and_has_its_shape(seconds: float, workers: int, seed: int) -> None:
    ladder = fit_ladder(SIZES_OF, seconds, workers, seed, SIZES_OF, proof_seconds=1e9)
    assert ladder.seconds <= seconds
    assert len(ladder.budgets) >= 3
    for low, high in zip(ladder.budgets, ladder.budgets[1:], strict=False):
        assert high / low == pytest.approx(RUNG_RATIO)
    for name in ARCHITECTURES:
        for budget in ladder.budgets:
            rung = [run for run in ladder.runs if run.architecture == name and run.budget == budget]
            assert len({run.width for run in rung}) == SIZES
        assert sum(run.seed != seed for run in ladder.runs if run.architecture == name) == REPEATED_RUNGS
    assert len({run.id for run in ladder.runs}) == len(ladder.runs)


def test_more_time_buys_larger_budgets() -> None:
    largest = [fit_ladder(SIZES_OF, seconds, 2, 0, SIZES_OF, 1e9).budgets[-1] for seconds in (100, 300, 900, 9000)]
    assert largest == sorted(set(largest))


def test_too_little_time_says_how_much_is_needed() -> None:
    with pytest.raises(InputError, match=r"minutes: the smallest ladder takes .* give more --minutes"):
        fit_ladder(SIZES_OF, 0.5, 2, 0, SIZES_OF, 1e9)


def test_the_proof_of_a_ladder_fits_its_time() -> None:
    """Many cores train a large ladder side by side; the proof is one run and must still stretch it three times."""
    ladder = fit_ladder(SIZES_OF, 600, 64, 0, SIZES_OF, proof_seconds=60)
    shortest = min(
        expected_seconds(size, LEAST_STRETCH * ladder.budgets[-1] / size.flops_per_token)
        for sizes in SIZES_OF.values()
        for size in sizes
    )
    assert shortest <= 60
    assert fit_ladder(SIZES_OF, 600, 64, 0, SIZES_OF, proof_seconds=1e9).budgets[-1] > ladder.budgets[-1]


def test_ladder_survives_json() -> None:
    ladder = fit_ladder(SIZES_OF, 300, 2, 0, SIZES_OF, 1e9)
    assert Ladder.from_json(json.loads(json.dumps(ladder.to_json()))) == ladder


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 8))
def test_makespan_is_between_its_bounds(jobs: list[float], workers: int) -> None:
    took = makespan(jobs, workers)
    lower = max(max(jobs), sum(jobs) / workers)
    assert lower <= took * (1 + 1e-9)
    assert took <= lower * 2  # Graham's bound for list scheduling


def test_next_size_lies_beyond_the_edge_and_nowhere_else() -> None:
    sizes = SIZES_OF["transformer"]
    specs = [RunSpec.of(size, 1e11, 0) for size in sizes[2:6]]

    def after(losses: list[float]) -> int | None:
        found = next_size(list(zip(specs, losses, strict=True)), sizes, 1e11, 0)
        return found.width if found else None

    assert after([1.0, 2.0, 3.0, 4.0]) == sizes[1].width
    assert after([4.0, 3.0, 2.0, 1.0]) == sizes[6].width
    assert after([2.0, 1.0, 2.0, 3.0]) is None
    smallest = [RunSpec.of(size, 1e11, 0) for size in sizes[:3]]
    assert next_size(list(zip(smallest, [1.0, 2.0, 3.0], strict=True)), sizes, 1e11, 0) is None


def test_measured_candidate_counts_what_the_model_has() -> None:
    candidate = measure_width("transformer", 16)
    assert dataclasses.replace(candidate, threads=1, small_step_seconds=0, large_step_seconds=0) == dataclasses.replace(
        SIZES_OF["transformer"][1], small_step_seconds=0, large_step_seconds=0, heads=1
    )
    assert 0 < candidate.step_seconds(4) < math.inf
    assert candidate.step_seconds(64) >= candidate.step_seconds(16)
