"""Tasks: what to learn. The trainer knows a model and a task, and nothing else of either."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from verim import ops
from verim.data.dataset import Evaluation
from verim.data.loader import Loader, document_numbers, evaluation_batches
from verim.data.stream import TokenStream
from verim.measures import bits_per_byte
from verim.nn import auxiliary_losses, within_documents
from verim.runtime.phases import phase

EVALUATION_BATCH = 64
"""Sequences that are evaluated at once."""

Batch = tuple[Tensor, ...]
"""What a step learns from: tensors whose first dimension is the sequence of the batch, so that it can be parted."""


@dataclass(frozen=True)
class Objective:
    """The figure of an evaluation by which models are compared, and which way it is better."""

    figure: str
    lower_is_better: bool = True

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`."""
        return one < other if self.lower_is_better else one > other


class WeighedLoss(Protocol):
    """What a step needs of a task: a loss that is a mean over the batch's `weight`.

    So the loss of a batch is the mean of its parts' losses, each weighed by its part's weight: micro-batches and ranks
    add up to the gradient of the whole.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of a batch or of a part of its rows, a scalar to differentiate."""
        ...

    def weight(self, batch: Batch) -> float:
        """What `loss` is the mean over: how many targets the batch has."""
        ...


class Task(WeighedLoss, Protocol):
    """Batches, a loss, an evaluation."""

    tokens_per_step: int
    objective: Objective

    def batch(self, step: int) -> Batch:
        """What step `step` learns from, on the CPU; the same for the same step."""
        ...

    def figures(self, loss: float) -> dict[str, float]:
        """The training loss in the task's other units, by name."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on held-out data, by name; the objective's is among them."""
        ...


class LanguageModelling:
    """Predict the next token. Loss in nats a token; evaluated in bits per byte of held-out text.

    `tokens` are those to learn from, of `bytes_per_token` bytes in the mean; `evaluation` is of a
    `verim.data.Dataset`. The training loss holds the auxiliary losses of the model's layers too; evaluation is
    without them. With a `separator`, no token sees beyond the document that this token begins
    (`verim.nn.within_documents`); else rows are read as one text.
    """

    objective = Objective("bits_per_byte")

    def __init__(
        self,
        tokens: Tensor | TokenStream,
        evaluation: Evaluation,
        batch: int,
        length: int,
        seed: int,
        bytes_per_token: float = 1.0,
        separator: int | None = None,
    ) -> None:
        self.loader = Loader(tokens, batch, length, seed)
        self.tokens_per_step = batch * length
        self.evaluation, self.bytes_per_token, self.separator = evaluation, bytes_per_token, separator

    def batch(self, step: int) -> Batch:
        return self.loader.batch(step)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with self._reading(model, batch[0]):
            return with_auxiliary_losses(model, batch)

    def weight(self, batch: Batch) -> float:
        return batch[1].numel()

    def _reading(self, model: nn.Module, inputs: Tensor) -> AbstractContextManager[None]:
        if self.separator is None:
            return nullcontext()
        return within_documents(model, document_numbers(inputs, self.separator))

    def figures(self, loss: float) -> dict[str, float]:
        return {"training_bits_per_byte": bits_per_byte(loss, self.bytes_per_token)}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        nats = 0.0
        for inputs, targets in self.evaluation.batches:
            inputs, targets = inputs.to(device), targets.to(device)
            with self._reading(model, inputs):
                nats += next_token_loss(model, inputs, targets, reduction="sum").item()
        figures = {"bits_per_byte": bits_per_byte(nats, self.evaluation.bytes)}
        if self.evaluation.bytes != self.evaluation.tokens:
            figures["nats_per_token"] = nats / self.evaluation.tokens
        return figures


class ByteLanguageModelling(LanguageModelling):
    """Predict the next byte; evaluated on `evaluation_bytes` held-out bytes."""

    def __init__(
        self, train: Tensor, held_out: Tensor, batch: int, length: int, seed: int, evaluation_bytes: int
    ) -> None:
        batches = tuple(evaluation_batches(held_out, EVALUATION_BATCH, length, evaluation_bytes))
        size = sum(targets.numel() for _, targets in batches)
        super().__init__(train, Evaluation(batches, size, size), batch, length, seed)


def with_auxiliary_losses(model: nn.Module, batch: Batch) -> Tensor:
    """The cross-entropy of (inputs, targets) and what the model's layers add to it."""
    inputs, targets = batch
    with auxiliary_losses() as others:
        loss = next_token_loss(model, inputs, targets)
    return sum(others, loss)


def next_token_loss(model: nn.Module, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of the model's predictions."""
    with phase("forward"):
        logits, _ = model(inputs)
    with phase("loss"):
        return ops.cross_entropy(logits, targets, reduction=reduction)
