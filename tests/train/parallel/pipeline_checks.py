"""Checks of pipeline parallelism on four ranks and on pairs of them: see spread_ranks.py."""

import time
from functools import partial
from typing import Any

import pytest
import torch
from spread import (
    BLOCKS,
    LENGTH,
    ROWS,
    WIDTH,
    Check,
    alone,
    average,
    batch_of,
    from_rank_0,
    loss_of,
    model_of,
    near,
    optimiser_of,
)
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel
from verim.nn import GELUConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MinGRUConfig
from verim.ops import force_backend
from verim.train.parallel.pipeline import SCHEDULES, Pipeline, bubble
from verim.train.parallel.stages import balanced, cut
from verim.train.parallel.traffic import Traffic

CHECKS: dict[str, Check] = {}
PARTS = 4
EIGHT = (
    BlockConfig(AttentionConfig(heads=2), SwiGLUConfig(hidden=24)),
    BlockConfig(MinGRUConfig(), GELUConfig(hidden=24)),
) * 4


class Guessing:
    """The loss of the other checks as a task; targets that are left out make rows weigh differently."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return loss_of(model, *batch)

    def weight(self, batch: tuple[Tensor, ...]) -> float:
        return float((batch[1] >= 0).sum())


def with_gaps(targets: Tensor) -> Tensor:
    for row in range(len(targets)):
        targets[row, : 3 * row] = -100
    return targets


def expected_gradients(make: Any, parts: int) -> Any:
    """One rank's, that takes the micro-batches one after the other."""
    model, (tokens, targets) = make(), batch_of(0)
    targets = with_gaps(targets)
    whole, total = (targets >= 0).sum(), 0.0
    for piece in zip(tokens.chunk(parts), targets.chunk(parts), strict=True):
        loss = loss_of(model, *piece) * (piece[1] >= 0).sum() / whole
        loss.backward()
        total += loss.item()
    norm = nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    return total, {name: weight.grad for name, weight in model.named_parameters()}, norm


def same_gradients(schedule: str, *pattern: BlockConfig, tied: bool = False, parts: int = PARTS) -> None:
    make = partial(model_of, *pattern, dtype=torch.float64, tied=tied)
    with force_backend("reference"):
        loss, expected, norm = from_rank_0(lambda: expected_gradients(make, parts))
        pipeline = Pipeline(make(), distributed.group.WORLD, parts, schedule, LENGTH)
        tokens, targets = batch_of(0)
        got = pipeline.backward(Guessing(), (tokens, with_gaps(targets)))
    near(got, loss, 1e-6, "loss")
    near(pipeline.gradient_norm(), norm, 1e-6, "norm")
    names = pipeline.names()
    for name, weight in pipeline.named_parameters():
        whole = names[name]
        near(weight.grad, expected["embedding.weight" if tied and whole == "head.weight" else whole], 1e-9, name)
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, sorted(names.values()))
    assert sorted(name for part in found for name in part) == sorted([*expected, *["head.weight"] * pipeline.tied])


for schedule in SCHEDULES:
    CHECKS[f"pipeline: gradients with {schedule}"] = partial(same_gradients, schedule, *EIGHT)
    CHECKS[f"pipeline: gradients of tied embeddings with {schedule}"] = partial(
        same_gradients, schedule, *EIGHT, tied=True
    )
    CHECKS[f"pipeline: gradients of every mixer with {schedule}"] = partial(
        same_gradients, schedule, *BLOCKS.values(), parts=2 if schedule == "gpipe" else 4
    )


def same_training(schedule: str, data: int, *pattern: BlockConfig, steps: int = 20, **fields: Any) -> None:
    expected = from_rank_0(lambda: alone(model_of(*pattern, **fields), steps, PARTS))
    mesh = init_device_mesh("cpu", (data, distributed.get_world_size() // data), mesh_dim_names=("data", "pipeline"))
    pipeline = Pipeline(model_of(*pattern, **fields), mesh["pipeline"], PARTS // data, schedule, LENGTH)
    optimiser, losses = optimiser_of(pipeline), []
    for step in range(steps):
        rows = tuple(tensor.chunk(data)[mesh.get_local_rank("data")] for tensor in batch_of(step))
        losses.append(pipeline.backward(Guessing(), rows))
        for weight in pipeline.parameters():
            average(weight.grad, mesh["data"].get_group())
        optimiser.step()
        optimiser.zero_grad()
    total = torch.stack(losses)
    average(total, mesh["data"].get_group())
    near(total, expected, 1e-3, "losses")


for schedule in SCHEDULES:
    CHECKS[f"pipeline: training with {schedule}"] = partial(same_training, schedule, 1, *EIGHT, steps=5)
CHECKS["pipeline: training with every mixer"] = partial(same_training, "1f1b", 1, *BLOCKS.values())
CHECKS["pipeline: training with tied embeddings"] = partial(same_training, "1f1b", 1, *EIGHT, tied=True)
CHECKS["pipeline: training beside data"] = partial(same_training, "1f1b", 2, *EIGHT)


def evaluation() -> None:
    tokens, _ = batch_of(0)
    for schedule in ("1f1b", "interleaved", "zbv"):
        model = model_of(*EIGHT).eval()
        with torch.no_grad():
            expected, _ = model(tokens)
        got, _ = Pipeline(model, distributed.group.WORLD, 2, schedule, LENGTH).eval()(tokens)
        near(got, expected, 1e-5, schedule)
        assert not got.requires_grad


CHECKS["pipeline: evaluation"] = evaluation


def volumes() -> None:
    """Every cut is crossed once each way by all micro-batches; the loss takes one number."""
    for schedule, cuts in (
        ("gpipe", 3),
        ("1f1b", 3),
        ("interleaved", 7),
        ("zbv", 6),
    ):  # at the fold of a V nothing is sent
        pipeline = Pipeline(model_of(*EIGHT), distributed.group.WORLD, PARTS, schedule, LENGTH)
        pipeline.backward(Guessing(), batch_of(0))  # the first step tells the ranks about each other
        with Traffic() as traffic:
            pipeline.backward(Guessing(), batch_of(1))
        sent = torch.tensor(traffic.volume("send"))
        distributed.all_reduce(sent)
        assert sent == 2 * cuts * ROWS * LENGTH * WIDTH * 4, (schedule, sent)
        kinds = traffic.count()
        assert kinds["all_reduce"] == 1 and set(kinds) <= {"send", "all_reduce"}, kinds


CHECKS["pipeline: volumes"] = volumes


class Sleeping(torch.autograd.Function):
    """`x` as it is, after a while, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(2 * ctx.seconds)
        return gradients[0], None


def idle_share(schedule: str, parts: int, per_rank: int, seconds: float) -> float:
    """The idle share of a step, from a barrier to the end of the slowest rank; the least of three steps.

    Blocks sleep, `seconds` forward and twice that backward a rank and micro-batch: what waits does not compute here, so
    one core is as good as four.
    """
    ranks = distributed.get_world_size()
    model = model_of(*([BlockConfig(MinGRUConfig())] * (ranks * per_rank)))
    for block in model.blocks:
        block.register_forward_hook(
            lambda block, arguments, result: (Sleeping.apply(result[0], seconds / per_rank), result[1])
        )
    pipeline = Pipeline(model, distributed.group.WORLD, parts, schedule, LENGTH)
    batch = batch_of(0, parts, 2)
    idle = []
    for _ in range(4):
        distributed.barrier()
        begin = time.perf_counter()
        pipeline.backward(Guessing(), batch)
        wall = torch.tensor(time.perf_counter() - begin)
        distributed.all_reduce(wall, distributed.ReduceOp.MAX)
        idle.append(1 - 3 * seconds * parts / wall.item())
    return min(idle[1:])  # the first step tells the ranks about each other


def bubbles() -> None:
    """What computes beside sleeps only adds to the bubble: where a busy machine makes it much, sleeps are longer."""
    for schedule, parts, per_rank in (("gpipe", 4, 1), ("1f1b", 4, 1), ("1f1b", 12, 1), ("interleaved", 4, 2)):
        expected = bubble(distributed.get_world_size(), parts, schedule, per_rank)
        for seconds in (0.04, 0.1, 0.25, 0.6):
            got = idle_share(schedule, parts, per_rank, seconds)
            if got < expected + 0.12:
                break
        if distributed.get_rank() == 0:
            print(f"bubble of {schedule}, {parts} micro-batches: {got:.3f}, formula {expected:.3f}", flush=True)
        assert expected - 0.01 < got < expected + 0.12, (schedule, parts, got, expected)


CHECKS["pipeline: bubbles"] = bubbles


def balance() -> None:
    """Heavier blocks come in smaller companies; the head counts."""
    assert balanced([4, 1, 1, 1, 1], 2) == [range(1), range(1, 5)]
    assert balanced([1.0] * 6, 3) == [range(2), range(2, 4), range(4, 6)]
    for seed in range(5):
        costs = torch.rand(7, generator=torch.Generator().manual_seed(seed)).tolist()
        best = min(max(sum(costs[:i]), sum(costs[i:j]), sum(costs[j:])) for i in range(1, 6) for j in range(i + 1, 7))
        assert max(sum(costs[part.start : part.stop]) for part in balanced(costs, 3)) <= best * (1 + 1e-12)
    big_head: LanguageModel = model_of(*EIGHT, vocab=4096)
    assert len(cut(big_head, 2, LENGTH)[1]) == 1 and len(cut(model_of(*EIGHT), 2, LENGTH)[1]) in (3, 4)


CHECKS["pipeline: balance"] = balance


def refusals() -> None:
    world, model = distributed.group.WORLD, model_of(*EIGHT[:3])
    with pytest.raises(InputError, match=r"pipeline: got 4 stages for 3 blocks; expected 1 to 3, or another depth"):
        Pipeline(model, world, 4)
    with pytest.raises(InputError, match=r"pipeline_schedule: got 'zigzag', expected one of gpipe, 1f1b, interleaved"):
        Pipeline(model, world, 4, "zigzag")
    with pytest.raises(InputError, match=r"stages_per_rank: got 2 with pipeline_schedule '1f1b', expected 1"):
        Pipeline(model, world, 4, stages_per_rank=2)
    with pytest.raises(InputError, match=r"micro_batches: got 6 with pipeline_schedule 'interleaved' on 4 ranks"):
        Pipeline(model_of(*EIGHT), world, 6, "interleaved")
    with pytest.raises(InputError, match=r"micro_batches: got 3 for a batch of 4 sequences; expected a divisor of 4"):
        Pipeline(model_of(*EIGHT), world, 3).backward(Guessing(), batch_of(0))
    with pytest.raises(InputError, match=r"state: got one for a model over several ranks"):
        Pipeline(model_of(*EIGHT), world, 3)(batch_of(0)[0], object())


CHECKS["pipeline: refusals"] = refusals
