"""Checks of expert parallelism on four ranks and on pairs of them: see spread_ranks.py."""

from functools import partial
from typing import Any

import pytest
import torch
from spread import (
    LENGTH,
    ROWS,
    WIDTH,
    Check,
    alone,
    average,
    batch_of,
    from_rank_0,
    gradients,
    loss_of,
    model_of,
    near,
    optimiser_of,
)
from torch import distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel
from verim.nn import MixtureOfExperts, MixtureOfExpertsConfig
from verim.nn.mixers import AttentionConfig, MinGRUConfig
from verim.ops import force_backend
from verim.ops.distributed import Ranks
from verim.train.parallel.expert import expert_parallel, expert_weights

CHECKS: dict[str, Check] = {}
ROUTINGS: dict[str, dict[str, Any]] = {
    "softmax of top": {},
    "top of softmax": {"routing": "top_of_softmax", "active": 1, "shared": 1},
    "softmax of top, limited": {"capacity_factor": 0.6},
    "expert choice": {"routing": "expert_choice"},
}


def blocks(fields: dict[str, Any]) -> tuple[BlockConfig, ...]:
    experts = MixtureOfExpertsConfig(experts=8, hidden=8, **fields)
    return BlockConfig(AttentionConfig(heads=2), experts), BlockConfig(MinGRUConfig(), experts)


def mesh_of(data: int) -> Any:
    return init_device_mesh("cpu", (data, distributed.get_world_size() // data), mesh_dim_names=("data", "expert"))


def spread(model: LanguageModel, mesh: Any) -> None:
    expert_parallel(model, mesh["expert"], distributed.group.WORLD)


def average_gradients(model: nn.Module, mesh: Any) -> None:
    """What is left to do after the backward pass, by its docstring."""
    experts = set(expert_weights(model))
    for name, weight in model.named_parameters():
        average(weight.grad, mesh["data"].get_group() if name in experts else None)


def own_rows() -> list[torch.Tensor]:
    return [tensor.chunk(distributed.get_world_size())[distributed.get_rank()] for tensor in batch_of(0)]


def own_experts(tensor: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    return tensor.chunk(group.size())[distributed.get_rank(group)]


def same_gradients(fields: dict[str, Any], data: int) -> None:
    """Losses, gradients, what was dropped and thresholds are those of one rank with all rows."""

    def whole() -> Any:
        model = model_of(*blocks(fields), dtype=torch.float64)
        found = gradients(model, *batch_of(0))
        return *found, [layer.routing.load for layer in layers_of(model)], dict(model.named_buffers())

    with force_backend("reference"):
        loss, expected, loads, buffers = from_rank_0(whole)
        model, mesh = model_of(*blocks(fields), dtype=torch.float64), mesh_of(data)
        spread(model, mesh)
        got = torch.tensor(gradients(model, *own_rows())[0], dtype=torch.float64)
    average(got)
    average_gradients(model, mesh)
    near(got, loss, 1e-6, "loss")  # shares of choices are float32
    experts = set(expert_weights(model))
    assert len(experts) == 4
    for name, weight in model.named_parameters():
        wanted = own_experts(expected[name], mesh["expert"].get_group()) if name in experts else expected[name]
        near(weight.grad, wanted, 1e-9, name)
    for layer, load in zip(layers_of(model), loads, strict=True):
        assert torch.equal(layer.routing.load, load) and layer.gate_and_in.weight.shape[0] == 8 // mesh["expert"].size()
        assert layer.routing.dropped == 0 or fields.get("capacity_factor")
    for name, buffer in model.named_buffers():
        near(buffer, buffers[name], 1e-9, name)


def layers_of(model: nn.Module) -> list[MixtureOfExperts]:
    return [layer for layer in model.modules() if isinstance(layer, MixtureOfExperts)]


for name, fields in ROUTINGS.items():
    for data in (1, 2, 4):
        CHECKS[f"experts: gradients with {name}, data {data}"] = partial(same_gradients, fields, data)


def same_training(fields: dict[str, Any], data: int) -> None:
    expected = from_rank_0(lambda: alone(model_of(*blocks(fields)), 20))
    model, mesh = model_of(*blocks(fields)), mesh_of(data)
    spread(model, mesh)
    optimiser, losses = optimiser_of(model), []
    for step in range(20):
        world = distributed.get_world_size()
        loss = loss_of(model, *(tensor.chunk(world)[distributed.get_rank()] for tensor in batch_of(step)))
        loss.backward()
        average_gradients(model, mesh)
        losses.append(loss.detach())
        optimiser.step()
        optimiser.zero_grad()
    total = torch.stack(losses)
    average(total)
    near(total, expected, 1e-3, "losses")  # a choice of experts that is nearly even may fall otherwise


for name in ("softmax of top, limited", "expert choice"):
    for data in (1, 2):
        CHECKS[f"experts: training with {name}, data {data}"] = partial(same_training, ROUTINGS[name], data)


def volumes() -> None:
    """Every row for another rank's expert travels there and back, forward and backward: 4 · width numbers."""
    model, mesh = model_of(*blocks({})), mesh_of(1)
    spread(model, mesh)
    rank, counted = distributed.get_rank(), []

    def all_to_all(self: Ranks, rows: torch.Tensor, sent: list[int], received: list[int], real=Ranks.all_to_all) -> Any:
        if rows.is_floating_point():
            counted.append((sum(sent) - sent[rank]) * rows[0].numel() * 4)
        return real(self, rows, sent, received)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "all_to_all", all_to_all)
        loss_of(model, *own_rows()).backward()
    leaving = 0
    for layer in layers_of(model):
        routing = layer.routing
        assert routing is not None and len(routing.logits) == ROWS * LENGTH
        home, expert = routing.tokens // LENGTH, torch.repeat_interleave(routing.load)
        leaving += int(((home == rank) & (expert // 2 != rank)).sum())
    totals = torch.tensor([sum(counted), leaving * 4 * WIDTH * 4])
    distributed.all_reduce(totals)  # what comes back to one was sent by others
    assert totals[0] == totals[1] > 0, totals


CHECKS["experts: volumes"] = volumes


def an_expert_without_tokens() -> None:
    """A router to which all are alike sends all tokens to the same two: the others get zeros, and nobody waits."""
    model, mesh = model_of(*blocks({"balance": 0.0, "z": 0.0})), mesh_of(1)
    for layer in layers_of(model):
        nn.init.zeros_(layer.router.weight)
    spread(model, mesh)
    loss_of(model, *own_rows()).backward()
    for layer in layers_of(model):
        assert layer.routing is not None and layer.out.weight.grad is not None
        load = layer.routing.load.view(4, 2).sum(1)
        assert (load == 0).any()
        assert (layer.out.weight.grad.abs().sum() > 0) == (load[distributed.get_rank()] > 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(own_rows()[0])[0].isfinite().all()


CHECKS["experts: an expert without tokens"] = an_expert_without_tokens


def refusals() -> None:
    six = model_of(BlockConfig(MinGRUConfig(), MixtureOfExpertsConfig(experts=6, hidden=4)))
    with pytest.raises(InputError, match=r"expert: got 4 ranks for 6 experts in blocks.0.feed_forward; .* 1, 2, 3, 6"):
        expert_parallel(six, distributed.group.WORLD)
    with pytest.raises(InputError, match="for a model without experts; expected 1, or use data"):
        expert_parallel(model_of(BlockConfig(MinGRUConfig())), distributed.group.WORLD)


CHECKS["experts: refusals"] = refusals
