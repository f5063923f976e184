"""The task of language modelling: what it adds to the loss of a batch."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from verim.data.dataset import Evaluation
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn.mixers import AttentionConfig, MinGRUConfig
from verim.train.task import LanguageModelling, next_token_loss

SEPARATOR = 3
DOCUMENTS = ([5, 6, 7, 8, 9], [3, 10, 11], [3, 4, 5, 6, 7, 8])  # all but a row's first begin with the separator


def task(separator: int | None, rows: Tensor) -> LanguageModelling:
    evaluation = Evaluation(((rows[:, :-1], rows[:, 1:]),), rows[:, 1:].numel(), rows[:, 1:].numel())
    return LanguageModelling(rows.flatten(), evaluation, 1, 4, 0, separator=separator)


def test_documents_in_one_row_are_read_as_if_each_stood_alone() -> None:
    torch.manual_seed(0)
    blocks = (BlockConfig(AttentionConfig(heads=2)), BlockConfig(MinGRUConfig(kernel=0)))
    model = LanguageModel(LanguageModelConfig(blocks, 8, 2, 16))
    for weight in model.parameters():  # a new model predicts the same after all
        torch.nn.init.normal_(weight, std=0.3)
    row = torch.tensor([[token for document in DOCUMENTS for token in document] + [SEPARATOR]])
    batch = (row[:, :-1], row[:, 1:])
    begins = [0, 5, 8, 14]
    alone = sum(
        next_token_loss(model, row[:, begin:end], row[:, begin + 1 : end + 1], reduction="sum")
        for begin, end in pairwise(begins)
    )
    kept, joined = task(SEPARATOR, row), task(None, row)
    torch.testing.assert_close(kept.loss(model, batch), alone / 14)
    assert math.isclose(kept.evaluate(model)["bits_per_byte"], alone.item() / 14 / math.log(2), rel_tol=1e-5)
    assert not torch.isclose(joined.loss(model, batch), kept.loss(model, batch))
    assert joined.evaluate(model) != kept.evaluate(model)
