"""Counts of a size, from two shallow models, against those of the whole model."""

import pytest
import torch

from verim.models import ARCHITECTURES, LanguageModel
from verim.scaling.planning.kept import kept_by_block
from verim.scaling.planning.search import Dial, compute_optimal_flops
from verim.scaling.planning.sizes import size_of, widths
from verim.scaling.planning.source import law_of


@pytest.mark.parametrize("width", [16, 64, 320])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counts_are_those_of_the_whole_model(architecture: str, width: int) -> None:
    size = size_of(architecture, width, 500, 256)
    with torch.device("meta"):
        model = LanguageModel(size.config)
    counts = model.parameter_count()
    assert (size.total, size.active, size.non_embedding) == (counts.total, counts.active, counts.non_embedding)
    assert size.flops_per_token == pytest.approx(model.flops(256), rel=1e-12)


def test_a_giant_is_counted_and_never_made() -> None:
    size = size_of("transformer", 8192, 32_000, 2048)
    assert size.depth == 128 and 1.0e11 < size.total < 1.1e11
    assert all(weight.is_meta for model in size.samples for weight in model.parameters())
    assert 6.0 < size.flops_per_token / size.total < 6.3


def test_the_dial_finds_the_nearest_size() -> None:
    dial = Dial("transformer", 32_000, 2048, law_of("epoch", "transformer"))
    for N in (1e6, 3.3e8, 7e10):
        place = dial.nearest(N)
        found = [abs(dial.at(each).total - N) for each in range(max(0, place - 2), place + 3)]
        assert min(found) == abs(dial.at(place).total - N) or min(found) > 0.9 * abs(dial.at(place).total - N)
    assert list(widths()) == sorted(set(widths()))


def test_the_optimal_budget_of_a_size_gives_the_size() -> None:
    law = law_of("chinchilla", "transformer")
    size = size_of("transformer", 1024, 32_000, 2048)
    assert pytest.approx(size.total, rel=1e-6) == law.optimum(compute_optimal_flops(law, size), size).N


@pytest.mark.parametrize("architecture", ["transformer", "mamba"])
def test_what_wide_blocks_keep_is_scaled_from_what_was_counted(architecture: str) -> None:
    counted, wide = (size_of(architecture, width, 256, 128) for width in (1024, 2048))
    for recompute in ("none", "selective", "full"):
        narrow, wider = (kept_by_block(size, "bfloat16", recompute) for size in (counted, wide))
        assert wider.per_token == pytest.approx(2 * narrow.per_token)
    whole, products, inputs = (
        kept_by_block(counted, "float32", recompute).per_token for recompute in ("none", "selective", "full")
    )
    assert whole > products > inputs == 4 * 1024
