"""Checks of context parallelism on four ranks and on pairs of them: see spread_ranks.py."""

from functools import partial

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
    average_gradients,
    batch_of,
    from_rank_0,
    gradients,
    loss_of,
    model_of,
    near,
    optimiser_of,
)
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from verim.errors import InputError
from verim.models import BlockConfig
from verim.nn import MixtureOfExpertsConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig
from verim.ops import force_backend
from verim.ops.distributed import Order
from verim.train.parallel.context import context_parallel, piece
from verim.train.parallel.traffic import Traffic

CHECKS: dict[str, Check] = {}
PLAIN = (
    BlockConfig(AttentionConfig(heads=4), SwiGLUConfig(hidden=24)),
    BlockConfig(AttentionConfig(heads=4, kv_heads=1), MixtureOfExpertsConfig(experts=4, hidden=8)),
)


def same_gradients(*pattern: BlockConfig, order: Order = "contiguous") -> None:
    """In float64 by the definitions of the ops, so that nothing but the exchanges can differ."""
    tokens, targets = batch_of(0)
    with force_backend("reference"):
        loss, expected = from_rank_0(lambda: gradients(model_of(*pattern, dtype=torch.float64), tokens, targets))
        model = model_of(*pattern, dtype=torch.float64)
        context_parallel(model, distributed.group.WORLD, order)
        own = (piece(tensor, distributed.group.WORLD, order) for tensor in (tokens, targets))
        got, _ = gradients(model, *own)
    got = torch.tensor(got)
    average(got)
    average_gradients(model)
    near(got, loss, 1e-6, "loss")
    for name, weight in model.named_parameters():
        near(weight.grad, expected[name], 1e-9, name)


for name, block in BLOCKS.items():
    CHECKS[f"context: gradients of {name}"] = partial(same_gradients, block)
CHECKS["context: gradients of zigzag attention"] = partial(same_gradients, *PLAIN, order="zigzag")
CHECKS["context: gradients of experts' choice"] = partial(
    same_gradients,
    BlockConfig(AttentionConfig(heads=2), MixtureOfExpertsConfig(experts=4, hidden=8, routing="expert_choice")),
)


def same_training(data: int, *pattern: BlockConfig, order: Order = "contiguous") -> None:
    """With every mixer in one model and the fast ops, also beside data parallelism."""
    expected = from_rank_0(lambda: alone(model_of(*pattern), 20, data))
    mesh = init_device_mesh("cpu", (data, distributed.get_world_size() // data), mesh_dim_names=("data", "context"))
    model = model_of(*pattern)
    context_parallel(model, mesh["context"], order)
    optimiser, losses = optimiser_of(model), []
    for step in range(20):
        rows = (tensor.chunk(data)[mesh.get_local_rank("data")] for tensor in batch_of(step))
        loss = loss_of(model, *(piece(tensor, mesh["context"], order) for tensor in rows))
        loss.backward()
        average_gradients(model)
        losses.append(loss.detach())
        optimiser.step()
        optimiser.zero_grad()
    total = torch.stack(losses)
    average(total)
    near(total, expected, 1e-3, "losses")  # a choice of experts that is nearly even may fall otherwise


CHECKS["context: training with every mixer"] = partial(same_training, 1, *BLOCKS.values())
CHECKS["context: training with every mixer, beside data"] = partial(same_training, 2, *BLOCKS.values())
CHECKS["context: training with zigzag attention"] = partial(same_training, 1, *PLAIN, order="zigzag")


def volumes() -> None:
    """Bytes that the ranks send in a step, against the formulas of the ops' docstrings; agreements take 512 each."""
    n, numbers = distributed.get_world_size(), ROWS * LENGTH // 4
    ring = n * (n - 1) // 2 * 2 * numbers * WIDTH * 4
    states = {"mamba2": 1 * 4 * 8 * 4 + 4, "rwkv7": 2 * 2 * 8 * 8}  # numbers of a row's summary
    for kind in ("attention with a window", "mamba2", "rwkv7", "minLSTM"):
        block = BLOCKS[kind]
        model = model_of(BlockConfig(block.mixer))
        context_parallel(model, distributed.group.WORLD)
        own = [piece(tensor, distributed.group.WORLD) for tensor in batch_of(0)]
        with Traffic() as traffic:
            loss = loss_of(model, *own)
            forward = traffic.volume("all_gather", least=4 * 512 + 1)
            loss.backward()
        if kind in states:
            assert forward == (n - 1) * ROWS * states[kind] * 4, (kind, forward)
        assert not traffic.volume("send") and not traffic.volume("all_reduce")
    model = model_of(BlockConfig(AttentionConfig(heads=4)))
    context_parallel(model, distributed.group.WORLD)
    with Traffic() as traffic:
        loss = loss_of(model, *own)
        forward = traffic.volume("send")
        loss.backward()
    totals = torch.tensor([forward, traffic.volume("send") - forward])
    distributed.all_reduce(totals)
    assert totals.tolist() == [ring, 2 * ring], (totals, ring)


CHECKS["context: volumes"] = volumes


def evaluation() -> None:
    """Without gradients, and in halves; what comes back is no state."""
    tokens, _ = batch_of(0)
    model = model_of(*BLOCKS.values()).eval()
    with torch.no_grad():
        expected, _ = model(tokens)
        context_parallel(model, distributed.group.WORLD)
        got, state = model(piece(tokens, distributed.group.WORLD))
        near(got, piece(expected, distributed.group.WORLD), 1e-4, "logits")
        assert not state.tensors()
        with torch.autocast("cpu", torch.bfloat16):
            got, _ = model(piece(tokens, distributed.group.WORLD))
        near(got, piece(expected, distributed.group.WORLD), 5e-2, "logits in halves")


CHECKS["context: evaluation"] = evaluation


def refusals() -> None:
    world = distributed.group.WORLD
    with pytest.raises(InputError, match=r"context: got 4 ranks.* for sequences of 22; expected a length .* of 4"):
        piece(torch.zeros(1, 22), world)
    with pytest.raises(InputError, match=r"order 'zigzag', for sequences of 12; expected a length .* multiple of 8"):
        piece(torch.zeros(1, 12), world, "zigzag")
    for name in ("mamba", "attention with a window", "rwkv4"):
        with pytest.raises(InputError, match=r"order: got 'zigzag' with blocks.0.mixer, .*; expected 'contiguous'"):
            context_parallel(model_of(BLOCKS[name]), world, "zigzag")
    with pytest.raises(InputError, match="whose capacity_factor takes tokens in the order of positions"):
        context_parallel(model_of(BLOCKS["attention"]), world, "zigzag")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))
    with pytest.raises(InputError, match="group: got a mesh of 2 dimensions"):
        context_parallel(model_of(BLOCKS["mamba"]), mesh)
    model = model_of(BLOCKS["mamba"])
    _, state = model(batch_of(0)[0])
    context_parallel(model, world)
    with pytest.raises(InputError, match="state: Mamba got one, but its sequence lies on several ranks; expected None"):
        model(batch_of(0)[0], state)


CHECKS["context: refusals"] = refusals
