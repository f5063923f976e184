"""Synthetic tasks as tasks of the trainer: the loss and the accuracy are those of the asked positions."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from verim.data.synthetic import IGNORED, AssociativeRecall, InductionHeads, Parity, SyntheticTask
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn.auxiliary import add_auxiliary_loss
from verim.nn.mixers import AttentionConfig
from verim.runs import RunDirectory
from verim.train import AdamWConfig, Trainer, TrainerConfig, WarmupStableDecay
from verim.train.synthetic_task import SyntheticTraining, accuracy


class Running(nn.Module):
    """Answers parity, up to `right` positions; says 0 beyond. Asked anything else, all tokens are equally likely."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        odd = tokens.cumsum(1) % 2
        odd[:, self.right :] = 0
        return 50.0 * nn.functional.one_hot(odd, 2).float(), None


class Indifferent(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        add_auxiliary_loss(torch.tensor(10.0))
        return torch.zeros(*tokens.shape, self.vocab), None


def test_accuracy_is_the_share_of_right_answers_at_asked_positions() -> None:
    task = Parity(length=20)
    assert accuracy(Running(20), task, rows=100) == 1.0
    assert accuracy(Running(10), task, rows=2000) == pytest.approx(0.75, abs=0.01)
    assert accuracy(Running(20), task.at_length(40), rows=2000) == pytest.approx(0.5, abs=0.01)


def test_longer_sequences_are_evaluated_by_their_length() -> None:
    figures = SyntheticTraining(Parity(length=8), 4, 0, evaluation_rows=256, lengths=(16, 32)).evaluate(Running(16))
    assert figures["accuracy"] == figures["accuracy_at_16"] == 1.0
    assert figures["accuracy_at_32"] == pytest.approx((8 + 16 / 2) / 24, abs=0.03)


@pytest.mark.parametrize("task", [InductionHeads(length=10, vocab=7), AssociativeRecall(length=12, pairs=2, vocab=32)])
def test_loss_is_that_of_the_answers_and_what_layers_add(task: SyntheticTask) -> None:
    training = SyntheticTraining(task, 8, 0)
    loss = training.loss(Indifferent(task.vocab), training.batch(step=3))
    assert loss.item() == pytest.approx(10 + math.log(task.vocab))


def test_the_trainer_trains_and_evaluates_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = Parity(length=4)
    model = LanguageModel(LanguageModelConfig((BlockConfig(AttentionConfig(heads=1)),), 16, 1, task.vocab))
    training = SyntheticTraining(task, batch=4, seed=1, evaluation_rows=70, lengths=(8,))
    config = TrainerConfig(AdamWConfig(0.01), WarmupStableDecay(3, warmup=1, decay=1))
    run = RunDirectory(tmp_path)
    with run.writing():
        result = Trainer(model, training, config, run).train({"task": vars(task)})
    assert result["tokens"] == 3 * 4 * 4
    assert 0 < result["accuracy"] <= 1
    assert 0 < result["accuracy_at_8"] <= 1
    assert result["accuracy"] == accuracy(model, task, rows=70)


def test_batches_follow_from_seed_and_step() -> None:
    seen: list[Tensor] = []

    class Watching(Indifferent):
        def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
            seen.append(tokens)
            return super().forward(tokens)

    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        training = SyntheticTraining(Parity(length=40), 4, seed)
        training.loss(Watching(2), training.batch(step))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])
    assert IGNORED not in seen[0]
