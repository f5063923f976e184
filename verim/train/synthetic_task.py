"""Training on a synthetic task: fresh sequences at every step, accuracy at the asked positions."""

import torch
from torch import Tensor, nn

from verim.data.synthetic import IGNORED, SyntheticTask, correct
from verim.train.task import EVALUATION_BATCH, Batch, Objective, with_auxiliary_losses


class SyntheticTraining:
    """Answers of `task`: a `Task`. Loss in nats an answer; evaluated by the share of right answers.

    Every step draws `batch` fresh sequences from (`seed`, step). Evaluation is on `evaluation_rows` held-out sequences,
    the same for every seed and at every evaluation; each length of `lengths` is evaluated besides.
    """

    objective = Objective("accuracy", lower_is_better=False)

    def __init__(
        self, task: SyntheticTask, batch: int, seed: int, evaluation_rows: int = 512, lengths: tuple[int, ...] = ()
    ) -> None:
        self.task, self.rows, self.seed = task, batch, seed
        self.evaluation_rows, self.lengths = evaluation_rows, lengths
        self.tokens_per_step = batch * task.length

    def batch(self, step: int) -> Batch:
        return self.task.batch(self.rows, self.seed, step)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return with_auxiliary_losses(model, batch)

    def weight(self, batch: Batch) -> float:
        return int((batch[1] != IGNORED).sum())

    def figures(self, loss: float) -> dict[str, float]:
        return {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """`accuracy`, and `accuracy_at_<length>` for each of `lengths`."""
        figures = {"accuracy": accuracy(model, self.task, self.evaluation_rows)}
        for length in self.lengths:
            longer = self.task.at_length(length)
            figures[f"accuracy_at_{length}"] = accuracy(model, longer, self.evaluation_rows)
        return figures


@torch.no_grad()
def accuracy(model: nn.Module, task: SyntheticTask, rows: int) -> float:
    """The share of right answers among those asked for in `rows` held-out sequences."""
    right = asked = 0
    for step, begin in enumerate(range(0, rows, EVALUATION_BATCH)):
        tokens, targets = task.batch(min(EVALUATION_BATCH, rows - begin), seed=0, step=step, held_out=True)
        logits, _ = model(tokens)
        hits, questions = correct(logits.argmax(-1), targets)
        right, asked = right + hits, asked + questions
    return right / asked
