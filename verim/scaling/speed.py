"""How long a training step takes on this machine, by architecture and width: measured, not modelled."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from verim.models import LanguageModel, LanguageModelConfig, architecture_config
from verim.nn.mixers import AttentionConfig
from verim.train import AdamWConfig
from verim.train.rules import LENGTH
from verim.train.step import update
from verim.train.task import next_token_loss

WIDTHS = (8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
"""The sizes a study chooses from."""
_TOKENS = (4 * LENGTH, 16 * LENGTH)
"""About how many tokens a step has when it is measured."""
_SLOWEST_STEP_SECONDS = 10.0


@dataclass(frozen=True)
class Candidate:
    """A size of an architecture, with its counts and the seconds of a step on `threads` at two batch sizes.

    Sequences have `length` tokens of a vocabulary of `vocab`.
    """

    architecture: str
    width: int
    depth: int
    heads: int | None
    non_embedding: int
    total: int
    flops_per_token: float
    threads: int
    small_step_seconds: float
    large_step_seconds: float
    length: int = LENGTH
    vocab: int = 256

    def step_seconds(self, batch: int) -> float:
        """Seconds of a step on `batch` sequences: a straight line through the two measured ones."""
        small, large = _batches(self.length)
        slope = max(0.0, (self.large_step_seconds - self.small_step_seconds) / (large - small))
        return max(self.small_step_seconds * batch / small * 0.5, self.small_step_seconds + slope * (batch - small))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    architecture: str, widths: Sequence[int], seconds: float, vocab: int = 256, length: int = LENGTH
) -> list[Candidate]:
    """The candidates of `widths` (rising), measured until `seconds` are spent, the rest at the FLOP/s of the last.

    What a first step costs once (compiling kernels, say) is not counted. A larger model reaches more FLOP/s, so a
    candidate that was not measured is rather faster than it says. Sizes too slow for any study are left out.
    """
    measure_width(architecture, widths[0], vocab, length)
    measured: list[Candidate] = []
    deadline = time.perf_counter() + seconds
    for width in widths:
        began = time.perf_counter()
        if began > deadline:
            guessed = _like(measured[-1], architecture, width)
            if guessed.small_step_seconds > _SLOWEST_STEP_SECONDS:
                break
            measured.append(guessed)
            continue
        measured.append(measure_width(architecture, width, vocab, length))
        if time.perf_counter() + 2 * (time.perf_counter() - began) > deadline:
            deadline = 0.0
    return measured


def _like(known: Candidate, architecture: str, width: int) -> Candidate:
    """A size as fast, in FLOP/s, as a known one."""
    with torch.device("meta"):  # counts need no memory
        model = LanguageModel(architecture_config(architecture, width, known.vocab))
    counts, flops = model.parameter_count(), model.flops(known.length)
    slower = flops / known.flops_per_token
    return replace(
        known,
        width=width,
        depth=model.config.depth,
        heads=_heads(model.config),
        non_embedding=counts.non_embedding,
        total=counts.total,
        flops_per_token=flops,
        small_step_seconds=known.small_step_seconds * slower,
        large_step_seconds=known.large_step_seconds * slower,
    )


def faster(one: Candidate, other: Candidate) -> Candidate:
    """The one with the shorter step: more threads do not always help a small model."""
    return min(one, other, key=lambda candidate: candidate.large_step_seconds)


def measure_width(architecture: str, width: int, vocab: int = 256, length: int = LENGTH) -> Candidate:
    """The candidate of one width, in this process with its present number of threads."""
    return measure_model(architecture_config(architecture, width, vocab), length, architecture)


def measure_model(config: LanguageModelConfig, length: int, architecture: str) -> Candidate:
    """The candidate that is the model of `config`, of sequences of `length`."""
    model = LanguageModel(config)
    optimiser = AdamWConfig(learning_rate=1e-6).build(model)
    counts = model.parameter_count()
    small, large = (_step_seconds(model, optimiser, batch, length) for batch in _batches(length))
    return Candidate(
        architecture=architecture,
        width=config.width,
        depth=config.depth,
        heads=_heads(config),
        non_embedding=counts.non_embedding,
        total=counts.total,
        flops_per_token=model.flops(length),
        threads=torch.get_num_threads(),
        small_step_seconds=small,
        large_step_seconds=large,
        length=length,
        vocab=config.vocab,
    )


def _batches(length: int) -> tuple[int, int]:
    """The two numbers of sequences at which a step is measured."""
    small, large = (max(1, tokens // length) for tokens in _TOKENS)
    return small, max(small + 1, large)


def _heads(config: LanguageModelConfig) -> int | None:
    mixer = config.block(0).mixer
    return mixer.heads if isinstance(mixer, AttentionConfig) else None


def _step_seconds(model: LanguageModel, optimiser: torch.optim.Optimizer, batch: int, length: int) -> float:
    tokens = torch.randint(0, model.config.vocab, (batch, length + 1))
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.1 and len(times) < 20):
        began = time.perf_counter()
        update(model, optimiser, next_token_loss(model, tokens[:, :-1], tokens[:, 1:]), clip=1.0)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
