"""Synthetic tasks: small questions that tell sequence mixers apart."""

from verim.data.synthetic.associative_recall import AssociativeRecall
from verim.data.synthetic.induction_heads import InductionHeads
from verim.data.synthetic.parity import Parity
from verim.data.synthetic.selective_copying import SelectiveCopying
from verim.data.synthetic.task import IGNORED, SyntheticTask, correct

SYNTHETIC_TASKS: dict[str, type[SyntheticTask]] = {
    "selective_copying": SelectiveCopying,
    "induction_heads": InductionHeads,
    "associative_recall": AssociativeRecall,
    "parity": Parity,
}
"""The kinds of synthetic tasks, by name."""

__all__ = [
    "IGNORED",
    "SYNTHETIC_TASKS",
    "AssociativeRecall",
    "InductionHeads",
    "Parity",
    "SelectiveCopying",
    "SyntheticTask",
    "correct",
]
