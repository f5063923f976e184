"""Pipeline parallelism: stages of the model lie on ranks, and micro-batches pass through them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from verim.errors import InputError
from verim.models import LanguageModel
from verim.ops.distributed import Ranks
from verim.train.parallel.groups import group_of, own_place
from verim.train.parallel.stages import Stage, cut
from verim.train.task import Batch, WeighedLoss


@dataclass(frozen=True)
class _Kind:
    """A schedule of torch.distributed.pipelining, and which stages a rank has."""

    schedule: Any
    stages_per_rank: int
    several: bool = False  # it may have more stages on a rank
    folded: bool = False  # rank r has stages r and 2 p - 1 - r, not r and r + p

    def stages(self, place: int, ranks: int, per_rank: int) -> list[int]:
        """The numbers of the stages of the rank at `place`."""
        if self.folded:
            return [place, 2 * ranks - 1 - place]
        return list(range(place, ranks * per_rank, ranks))


SCHEDULES = {
    "gpipe": _Kind(ScheduleGPipe, 1),
    "1f1b": _Kind(Schedule1F1B, 1),
    "interleaved": _Kind(ScheduleInterleaved1F1B, 2, several=True),
    "zero_bubble": _Kind(ScheduleInterleavedZeroBubble, 2, several=True),
    "zbv": _Kind(ScheduleZBVZeroBubble, 2, folded=True),
}
"""How micro-batches pass: GPipe (Huang et al. 2018, arXiv 1811.06965); 1F1B with a flush (Narayanan et al. 2021, arXiv
2104.04473, section 2.2.1), and the same with several stages a rank (2.2.2); zero bubble (Qi et al. 2023, arXiv
2401.10241), where the weights' gradients fill the gaps, and its V-shaped form, with the first and the last stage on one
rank."""


def bubble(ranks: int, micro_batches: int, schedule: str = "1f1b", stages_per_rank: int = 0) -> float:
    """The share of a step in which a rank waits, where all stages take the same time and sending takes none.

        (p - 1) / (v m + p - 1)        p ranks, m micro-batches, v stages a rank

    GPipe and 1F1B have v = 1 (arXiv 2104.04473, sections 2.2.1 and 2.2.2, as a share of the whole and not of the ideal
    time). For the two schedules without bubbles it is not known in closed form for any m: the bound of "interleaved".
    """
    kind = _kind(schedule, ranks, micro_batches, stages_per_rank)
    return (ranks - 1) / ((stages_per_rank or kind.stages_per_rank) * micro_batches + ranks - 1)


class Pipeline(nn.Module):
    """A language model over the ranks of `group`; this module's weights are those of the stages of this rank.

    Every rank gives the whole model with the same weights, of which it keeps its stages: the rest is let go. Stages are
    cut so that the most expensive one for sequences of `length` is as cheap as can be (`stages.cut`). A batch passes in
    `micro_batches` pieces as `schedule` says (`SCHEDULES`), on the engine of torch.distributed.pipelining.

    `stages_per_rank`: for "interleaved" and "zero_bubble" (0: 2).

    Tied embeddings: the first stage has the embedding, the last a copy as its head; both get the sum of both gradients
    at the end of `backward`, so that they stay equal under any optimiser.

    Raises `InputError`, on all ranks alike, for what cannot work, naming the field.
    """

    def __init__(
        self,
        model: LanguageModel,
        group: ProcessGroup | DeviceMesh,
        micro_batches: int,
        schedule: str = "1f1b",
        length: int = 1024,
        stages_per_rank: int = 0,
    ) -> None:
        super().__init__()
        self.group = group_of(group)
        ranks, place = self.group.size(), own_place(self.group)
        self.kind = _kind(schedule, ranks, micro_batches, stages_per_rank)
        per_rank = stages_per_rank or self.kind.stages_per_rank
        self.config, self.micro_batches, self.count = model.config, micro_batches, ranks * per_rank
        self.blocks = cut(model, self.count, length)
        """Of each stage of the pipeline."""
        self.numbers = self.kind.stages(place, ranks, per_rank)
        """Of the stages of this rank."""
        self.stages = nn.ModuleList(Stage(model, self.blocks[number]) for number in self.numbers)
        self.last = next(rank for rank in range(ranks) if self.count - 1 in self.kind.stages(rank, ranks, per_rank))
        """The rank with the last stage; the first stage is on the first rank."""
        self.tied = model.config.tied and self.last != 0
        if self.tied and place == self.last:
            model.head.weight = nn.Parameter(model.head.weight.detach().clone())
        self._ranks = Ranks("pipeline", self.group, False)
        self._engine: tuple[Any, Any] = (None, None)

    def backward(self, task: WeighedLoss, batch: Batch, weight: float = 0.0) -> Float[Tensor, ""]:
        """Adds the gradient of the batch's mean loss to this rank's weights; the mean loss, on all ranks.

        The first tensor of `batch` is what the task's loss calls the model on; all ranks give the same batch. The loss
        is divided by `weight` (0: that of the batch): where ranks with other rows take the mean of gradients, it is the
        weight of all rows by the number of those ranks. Auxiliary losses are those of the micro-batches, as if one
        rank took them one after the other.
        """
        rows = len(batch[0])
        if rows % self.micro_batches:
            raise InputError(
                f"micro_batches: got {self.micro_batches} for a batch of {rows} sequences; expected a divisor of {rows}"
            )
        pieces = list(zip(*(tensor.chunk(self.micro_batches) for tensor in batch), strict=True))
        weights = [float(task.weight(piece)) for piece in pieces]
        whole = weight or sum(weights)
        for stage in self._own():
            stage.begin([share / whole for share in weights])
        reached = torch.zeros((), device=batch[0].device)

        def loss_of(features: Tensor, numbers: Tensor) -> Tensor:
            number = int(numbers[0])
            loss = task.loss(_Read(self._head(), features), pieces[number]) * (weights[number] / whole)
            reached.add_(loss.detach())
            return loss

        numbers = torch.arange(self.micro_batches).repeat_interleave(rows // self.micro_batches)
        step = self._schedule(batch[0], loss_of).step
        is_first, is_last = 0 in self.numbers, self.count - 1 in self.numbers
        step(*(batch[:1] if is_first else ()), target=numbers if is_last else None, return_outputs=False)
        self._add_tied_gradients()
        reached += sum(stage.auxiliary() for stage in self._own())
        distributed.all_reduce(reached, group=self.group)
        return reached

    @torch.no_grad()
    def forward(
        self, tokens: Int[Tensor, "batch length"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length vocab"], None]:
        """The logits on all ranks, without gradients; all ranks give the same tokens. For evaluations, in one piece."""
        if state is not None:
            raise InputError("state: got one for a model over several ranks; expected None: give whole sequences")
        place, rows = own_place(self.group), (*tokens.shape, self.config.width)
        x: Tensor = tokens
        sender = 0
        for number in range(self.count):
            here = self._place_of(number)
            if here != sender and place in (here, sender):
                like = torch.empty(rows, dtype=self._dtype(), device=tokens.device)
                exchange = ([(x, here)], {}) if place == sender else ([], {"x": (like, sender)})
                x = self._ranks.exchange(*exchange).received().get("x", x)
            if place == here:
                x = self.stages[self.numbers.index(number)](x)
            sender = here
        shape = (*tokens.shape, self.config.vocab)
        logits = torch.empty(shape, dtype=self._dtype(), device=tokens.device)
        if place == self.last:
            logits = self._head()(x).to(logits.dtype)
        distributed.broadcast(logits, group=self.group, group_src=self.last)
        return logits, None

    def names(self) -> dict[str, str]:
        """What the weights of this module are called in the whole model: for optimisers' rules and checkpoints."""
        return {name: name.split(".", 2)[2] for name, _ in self.named_parameters()}

    def gradient_norm(self) -> Float[Tensor, ""]:
        """The norm of the whole model's gradient, on all ranks; a tied weight counts once."""
        total = torch.zeros((), device=next(self.parameters()).device)
        copy = self._head().weight if self.tied and own_place(self.group) == self.last else None
        for weight in self.parameters():
            if weight.grad is not None and weight is not copy:
                total += weight.grad.float().square().sum()
        distributed.all_reduce(total, group=self.group)
        return total.sqrt()

    def _own(self) -> list[Stage]:
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    def _place_of(self, number: int) -> int:
        ranks = self.group.size()
        return next(rank for rank in range(ranks) if number in self.kind.stages(rank, ranks, self.count // ranks))

    def _head(self) -> nn.Module:
        head = self._own()[self.numbers.index(self.count - 1)].head
        assert head is not None, "the last stage has the head"
        return head

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _schedule(self, tokens: Tensor, loss: Callable[..., Tensor]) -> Any:
        """The engine for batches of this shape, with `loss`; it is kept for the next."""
        key = tokens.shape, tokens.device, torch.is_autocast_enabled(tokens.device.type)
        if self._engine[0] != key:
            rows = len(tokens) // self.micro_batches
            features = torch.empty(rows, tokens.shape[1], self.config.width, dtype=self._dtype(), device="meta")
            stages = [
                PipelineStage(
                    stage,
                    number,
                    self.count,
                    tokens.device,
                    input_args=(tokens[:rows].to("meta") if number == 0 else features.requires_grad_(),),
                    output_args=(features.requires_grad_(),),
                    group=self.group,
                )
                for number, stage in zip(self.numbers, self._own(), strict=True)
            ]
            several = self.kind.stages_per_rank > 1
            self._engine = (
                key,
                self.kind.schedule(
                    stages if several else stages[0], self.micro_batches, loss_fn=_Later(), scale_grads=False
                ),
            )
        engine = self._engine[1]
        engine._loss_fn.function = loss
        return engine

    def _add_tied_gradients(self) -> None:
        """Embedding and head, where they are one weight on two ranks, get the sum of their gradients."""
        place = own_place(self.group)
        if not self.tied or place not in (0, self.last):
            return
        embedding = self._own()[0].embedding
        weight = self._head().weight if embedding is None else embedding.weight
        assert isinstance(weight, nn.Parameter) and weight.grad is not None, "the loss depends on it"
        other = self.last if place == 0 else 0
        arrived = self._ranks.exchange([(weight.grad, other)], {"gradient": (weight.grad, other)}).received()
        weight.grad += arrived["gradient"]


class _Later:
    """The loss of the step that is on its way: the engine is made once, each step has a loss of its own."""

    function: Callable[..., Tensor]

    def __call__(self, *arguments: Any) -> Tensor:
        return self.function(*arguments)


class _Read(nn.Module):
    """A model that has computed what its head reads, for a loss that calls a model."""

    def __init__(self, head: nn.Module, features: Tensor) -> None:
        super().__init__()
        self.head = head
        self._features = features

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        return self.head(self._features), None

    def features(self, tokens: Tensor) -> tuple[Tensor, None]:
        return self._features, None


def _kind(schedule: str, ranks: int, micro_batches: int, stages_per_rank: int) -> _Kind:
    if schedule not in SCHEDULES:
        raise InputError(f"pipeline_schedule: got {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    kind = SCHEDULES[schedule]
    known = kind.stages_per_rank
    if stages_per_rank and not kind.several and stages_per_rank != known:
        raise InputError(
            f"stages_per_rank: got {stages_per_rank} with pipeline_schedule {schedule!r}, expected {known} (or 0), or "
            "one of interleaved, zero_bubble"
        )
    if stages_per_rank < 0 or micro_batches < 1:
        raise InputError(
            f"stages_per_rank, micro_batches: got {stages_per_rank}, {micro_batches}; expected at least 0 and 1"
        )
    if kind.several and micro_batches % min(ranks, micro_batches):
        raise InputError(
            f"micro_batches: got {micro_batches} with pipeline_schedule {schedule!r} on {ranks} ranks; expected fewer, "
            f"or a multiple of {ranks}"
        )
    return kind
