"""Rules that give a run its batch, learning rate and schedule, so that a ladder compares scale and not tuning.

Each rule has its source; where the source is this project, the sweep behind it stands in docs/LOG.md.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from verim.train.config import TrainerConfig
from verim.train.optimisers import AdamWConfig
from verim.train.schedules import WarmupStableDecay

LENGTH = 128
"""Bytes a sequence."""

MOST_EPOCHS = 40
"""More passes over a text bring nothing (Muennighoff et al. 2023, arXiv 2305.16264, section 6)."""

EVALUATION_BYTES = 2**17
"""Held-out bytes on which a run of a study is judged, the same for all runs of it."""

RULES = {
    "length": f"{LENGTH} bytes a sequence",
    "batch": "sequences grow as the square root of the tokens of the run, in powers of 2 (our sweep)",
    "depth": "one block for every full 64 channels, two for Mamba (nanochat's ratio; Gu & Dao 2023, section 3.4)",
    "heads": "16 channels a head; SwiGLU of 8/3 the width (Shazeer 2020)",
    "learning rate": "0.03 at every width: matrices take min(4, 32 / fan_in) of it (Yang et al. 2022, table 8), "
    "vectors 0.3; measured in our sweep",
    "schedule": "2 % warm-up, then constant, then linear to zero over the last 40 % (Hägele et al. 2024); our sweep",
}
"""What the rules say, in words, for whoever reads a ladder."""


@dataclass(frozen=True)
class Recipe:
    """How a run is trained: batch in sequences, and the trainer's configuration."""

    batch: int
    length: int
    trainer: TrainerConfig

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def batch_sequences(tokens: float) -> int:
    """Sequences a batch for a run of `tokens`: the power of 2 nearest to 6.5 · (tokens / 1e6)^0.5, at least 4."""
    return max(4, 2 ** round(math.log2(6.5 * (tokens / 1e6) ** 0.5)))


def recipe(tokens: float, evaluations: int = 1, length: int = LENGTH, batch: int | None = None) -> Recipe:
    """The recipe of a run over about `tokens` tokens (rounded to whole batches) in sequences of `length`.

    The rule of the batch, where none is given, is one for its tokens: longer sequences are fewer.
    """
    batch = batch or max(1, batch_sequences(tokens) * LENGTH // length)
    steps = max(20, round(tokens / (batch * length)))
    optimiser = AdamWConfig(learning_rate=0.03)
    schedule = WarmupStableDecay(steps, warmup=max(1, round(0.02 * steps)), decay=round(0.4 * steps))
    return Recipe(batch, length, TrainerConfig(optimiser, schedule, evaluations=evaluations))
