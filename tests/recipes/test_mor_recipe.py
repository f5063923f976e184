"""The Mixture-of-Recursions recipe: which trials there are, how its figures are told."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from verim.errors import InputError
from verim.models import LanguageModel
from verim.recipes.mor import MODELS, RECURSIONS, Experiment
from verim.recipes.mor_decoding import largest_batch
from verim.recipes.mor_page import write_page


def test_models_have_one_depth_and_the_small_ones_the_blocks_of_the_recursive() -> None:
    experiment = Experiment(quick=True)
    for n in RECURSIONS:
        recursive, mor, small = (experiment.config(f"{kind}-{n}") for kind in ("recursive", "mor", "small"))
        assert recursive.depth == mor.depth == experiment.config("vanilla").depth == 14
        assert small.depth == recursive.blocks == mor.blocks == 2 + 12 // n
    assert LanguageModel(experiment.config("recursive-3")).flops(64) == LanguageModel(
        experiment.config("vanilla")
    ).flops(64)
    assert LanguageModel(experiment.config("mor-3")).flops(64) < LanguageModel(experiment.config("vanilla")).flops(64)


def test_bad_settings_are_named() -> None:
    for change, message in (
        ({"models": ("mor-5",)}, "models: got"),
        ({"width": 20}, "width: got 20"),
        ({"depth": 12}, "depth: got 12, expected 2 and a multiple of recursions"),
    ):
        with pytest.raises(InputError, match=message):
            Experiment(**change)  # type: ignore[arg-type]


def test_as_many_sequences_as_fit() -> None:
    model = LanguageModel(Experiment(quick=True).config("mor-4"))
    weights = 4 * model.parameter_count().total
    assert largest_batch(model, weights + model.state_bytes(7, 32), 32) == 7


def test_the_page_tells_every_comparison(tmp_path: Path) -> None:
    experiment = Experiment(quick=True)
    records: list[dict[str, Any]] = []
    for trial, seed in product(experiment.trials(), (0, 1)):
        record = {"bits_per_byte": 2.0 + 0.1 * seed, "seconds": 100.0, "peak_bytes": 1e8, "tokens": 1e6, "flops": 1e12}
        record |= {"model": trial.model, "budget": trial.budget, "seed": seed, "parameters": 1000}
        if trial.model.startswith("mor"):
            record |= {"seconds": 80.0, "peak_bytes": 75e6, "sampling_accuracy": [0.9], "dead": 0.1}
            record |= {"mean_depth": 1.5, "largest_violation": 0.2}
        records.append(record)
    speeds = [
        {"model": name, "kind": kind, "batch": 4, "tokens_per_second": rate, "mean_depth": rate - 1}
        for name, rate in (("vanilla", 1.0), ("mor-4", 2.5))
        for kind in ("equal", "largest")
    ]
    path = tmp_path / "page.md"
    write_page(path, records, speeds, experiment.settings())
    text = path.read_text()
    assert "2.050 ± 0.050" in text and "-20 %" in text and "-25 %" in text
    assert "| mor-4 | 4 (largest) | 2 | 2.50 | 2.06 | 1.50 |" in text
    assert all(name in text for name in MODELS if not name.startswith("small"))
