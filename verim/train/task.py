"""Tasks: what to learn. The trainer knows a model and a task, and nothing else of either."""

from typing import Protocol

import torch
from torch import Tensor, nn

from verim import ops
from verim.data.loader import Loader, evaluation_batches
from verim.measures import bits_per_byte
from verim.nn import auxiliary_losses

EVALUATION_BATCH = 64
"""Sequences that are evaluated at once."""


class Task(Protocol):
    """Batches, a loss, an evaluation."""

    tokens_per_step: int

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The training loss of step `step`, a scalar to differentiate; the same for the same step."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on held-out data, by name."""
        ...


class ByteLanguageModelling:
    """Predict the next byte. Loss in nats a byte; evaluated in bits a byte on `evaluation_bytes` held-out bytes.

    The training loss holds the auxiliary losses of the model's layers too; evaluation is without them.
    """

    def __init__(self, train: Tensor, held_out: Tensor, batch: int, length: int, seed: int, evaluation_bytes: int):
        self.loader = Loader(train, batch, length, seed)
        self.tokens_per_step = batch * length
        self.evaluation = list(evaluation_batches(held_out, EVALUATION_BATCH, length, evaluation_bytes))

    def loss(self, model: nn.Module, step: int) -> Tensor:
        with auxiliary_losses() as others:
            loss = next_token_loss(model, *self.loader.batch(step))
        return sum(others, loss)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        nats = sum(next_token_loss(model, *batch, reduction="sum").item() for batch in self.evaluation)
        return {"bits_per_byte": bits_per_byte(nats, sum(targets.numel() for _, targets in self.evaluation))}


def next_token_loss(model: nn.Module, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of the model's predictions."""
    logits, _ = model(inputs)
    return ops.cross_entropy(logits, targets, reduction=reduction)
