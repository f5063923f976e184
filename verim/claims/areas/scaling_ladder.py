"""Scaling: a small ladder of IsoFLOP curves, trained here."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast
from verim.data.corpus import load_corpus
from verim.data.tokens import save_tokens
from verim.models import LanguageModel, architecture_config
from verim.scaling import isoflop
from verim.scaling.ladder import RunSpec
from verim.scaling.workers import CORPUS_FILE, Job, train_run
from verim.train.rules import LENGTH


@claim(
    id="scaling-isoflop-here",
    area="scaling",
    text="IsoFLOP curves are parabolas with a minimum inside the sizes, which moves to larger models with the budget",
    source="Hoffmann et al. 2022, arXiv 2203.15556, section 3.2 and figure 3",
    expected=AtLeast(1.0),
    cost=400,
    kind="measured",
    remark="how far the smallest and the largest size lie above the parabola's minimum, in percent of the loss; "
    "0 where the minimum lies outside",
)
def isoflop_here(
    budgets: Sequence[float] = (2e10, 1e11), widths: Sequence[int] = (8, 16, 32, 64, 96)
) -> list[Measurement]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = load_corpus()
        save_tokens(Path(folder, CORPUS_FILE), corpus.train, corpus.held_out)
        for budget in budgets:
            sizes, losses = zip(*(_trained(width, budget, Path(folder)) for width in widths), strict=True)
            curve = isoflop.minimum(sizes, losses)
            ends = {"smallest": losses[0], "largest": losses[-1]}
            rises = {name: 100 * (loss / curve.loss - 1) if curve.interior else 0.0 for name, loss in ends.items()}
            conditions = (
                f"percent above the minimum at {curve.N:.3g} parameters, transformers of width {widths[0]} to "
                f"{widths[-1]}, {budget:.0e} FLOPs each, bytes of Python's library"
            )
            found.append(Measurement(rises, conditions))
    return found


def _trained(width: int, budget: float, folder: Path) -> tuple[float, float]:
    """Parameters without the embedding, and held-out bits per byte after the budget."""
    config = architecture_config("transformer", width)
    with torch.device("meta"):
        model = LanguageModel(config)
    tokens = budget / model.flops(LENGTH)
    spec = RunSpec("transformer", width, budget, tokens, seed=0, evaluations=1, expected_seconds=0.0)
    result = train_run(Job(folder / "runs" / spec.id, spec, torch.get_num_threads()), lambda run, fraction: None)
    return float(model.parameter_count().non_embedding), float(result["bits_per_byte"])
