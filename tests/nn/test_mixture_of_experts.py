"""Experts: their products against every expert on every token, the rules of routing against the papers."""

import copy
import math
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode

from verim.errors import InputError
from verim.nn import MixtureOfExperts, MixtureOfExpertsConfig, auxiliary_losses
from verim.nn.experts import (
    grouped_outer_products,
    grouped_products,
    outer_products,
    products,
    swiglu_experts,
)
from verim.nn.routing import Rows, balance_loss, token_choice
from verim.ops import force_backend

WIDTH = 16
RULES = ("softmax_of_top", "top_of_softmax", "expert_choice")
each_rule = pytest.mark.parametrize("rule", RULES)


def build(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> MixtureOfExperts:
    torch.manual_seed(seed)
    config = MixtureOfExpertsConfig(**({"experts": 6, "hidden": 10} | changes))
    return config.build(WIDTH).to(dtype)


def in_float64() -> AbstractContextManager[None]:
    """float64 runs the ops' definitions, on purpose."""
    return force_backend("reference")


def gates_of(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    """[tokens, experts], zero where a token does not go: the papers' formulas, word by word."""
    config, logits = layer.config, x.flatten(0, 1) @ layer.router.weight.t()
    probability = logits.exp() / logits.exp().sum(-1, keepdim=True)
    gates = torch.zeros_like(logits)
    if config.routing == "expert_choice":
        for expert in range(config.experts):
            if layer.training:
                count = math.ceil(len(logits) * config.active / config.experts)
                taken = probability[:, expert].argsort(descending=True)[:count]
            else:
                taken = (probability[:, expert] >= layer.thresholds[expert]).nonzero()[:, 0]
            gates[taken, expert] = probability[taken, expert]
        return gates
    for token, row in enumerate(logits):
        best = row.argsort(descending=True)[: config.active]
        chosen = row[best].exp() / row[best].exp().sum() if config.routing == RULES[0] else probability[token, best]
        gates[token, best] = chosen
    return gates


def flops_of_matrices(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()["Global"].items()
    return sum(count for operator, count in counts if str(operator).startswith("aten"))


def every_expert_on_every_token(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    tokens, gates = x.flatten(0, 1), gates_of(layer, x)
    y = torch.zeros_like(tokens)
    for expert in range(layer.config.experts):
        gate, value = (tokens @ layer.gate_and_in.weight[expert].t()).chunk(2, dim=-1)
        y = y + gates[:, expert, None] * ((silu(gate) * value) @ layer.out.weight[expert].t())
    if layer.shared is not None:
        gate, value = layer.shared.gate_and_in(tokens).chunk(2, dim=-1)
        y = y + layer.shared.out(silu(gate) * value)
    return y.view_as(x)


@each_rule
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (2, 13), (3, 40)])
def test_equals_every_expert_on_every_token_with_all_gradients(
    rule: str, training: bool, shape: tuple[int, int]
) -> None:
    layer = build(routing=rule, shared=2, active=3).train(training)
    x = torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    with in_float64():
        y, state = layer(x)
        expected = every_expert_on_every_token(layer, x)
        mine = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
        theirs = torch.autograd.grad(expected, [x, *layer.parameters()], upstream)
    assert state is None
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradcheck_with_tokens_of_no_and_of_many_rows_and_an_empty_expert() -> None:
    torch.manual_seed(0)
    rows = Rows.sorted_by_expert(torch.tensor([4, 0, 4, 2, 1]), torch.tensor([2, 0, 3]), 5)
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3), (3, 4, 3), (3, 3, 2), (5,))]

    def run(x: Tensor, gate_and_in: Tensor, out: Tensor, gates: Tensor) -> Tensor:
        return swiglu_experts(x, gate_and_in, out, rows, gates)

    with in_float64():
        assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs])
        y = run(*inputs)
        y.sum().backward()
    assert not y[3].any()  # no expert computes it
    assert inputs[1].grad is not None and inputs[1].grad[0].any() and not inputs[1].grad[1].any()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 12), st.integers(1, 6), st.data(), st.floats(0.01, 3), st.integers(0, 2**32 - 1)
)
def test_capacity_takes_the_first_choices_by_position(
    batch: int, length: int, experts: int, data: st.DataObject, factor: float, seed: int
) -> None:
    active = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    gates, chosen = torch.rand(batch, length, experts, generator=generator).topk(active)
    capacity = math.ceil(factor * batch * length * active / experts)
    assigned, choices, wanted = token_choice(chosen.flatten(0, 1), experts, capacity, length)
    rows: list[list[tuple[int, float]]] = [[] for _ in range(experts)]
    for position in range(length):
        for sequence in range(batch):
            for choice in range(active):
                expert = int(chosen[sequence, position, choice])
                rows[expert].append((sequence * length + position, float(gates[sequence, position, choice])))
    assert wanted.tolist() == [len(each) for each in rows] and wanted.sum() == batch * length * active
    taken = [each[:capacity] for each in rows]
    assert assigned.load.tolist() == [len(each) for each in taken]
    assert list(zip(assigned.tokens.tolist(), gates.flatten()[choices].tolist(), strict=True)) == [
        row for each in taken for row in each
    ]


def test_capacity_acts_in_training_alone_and_what_is_dropped_leaves_the_residual_as_it_is() -> None:
    layer, x = build(capacity_factor=0.25), torch.randn(2, 30, WIDTH, dtype=torch.float64)
    with torch.no_grad(), in_float64():
        y, _ = layer(x)
        routing = layer.routing
        assert routing is not None
        capacity = math.ceil(0.25 * 60 * 2 / 6)
        assert routing.wanted.sum() == 120 and routing.load.tolist() == routing.wanted.clamp(max=capacity).tolist()
        assert routing.dropped == 120 - routing.load.sum() > 0
        computed = torch.zeros(60, dtype=torch.bool)
        computed[routing.tokens] = True
        assert routing.untouched == (~computed).sum() > 0
        assert not y.flatten(0, 1)[~computed].any() and y.flatten(0, 1)[computed].any(-1).all()
        layer.eval()(x)
    assert layer.routing is not None and layer.routing.dropped == 0 and layer.routing.load.sum() == 120


def test_in_training_with_a_capacity_no_token_depends_on_those_after_it() -> None:
    layer, x = build(capacity_factor=0.5), torch.randn(2, 20, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, 11:] = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    with torch.no_grad(), in_float64():
        one, other = layer(x)[0], layer(changed)[0]
    torch.testing.assert_close(one[:, :11], other[:, :11], rtol=1e-12, atol=1e-12)


def test_expert_choice_is_causal_in_evaluation_and_not_in_training() -> None:
    """What its documentation says, both halves of it."""
    layer, x = build(routing="expert_choice"), torch.randn(2, 20, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, 11:] *= 10
    with torch.no_grad(), in_float64():
        assert not torch.allclose(layer(x)[0][:, :11], layer(changed)[0][:, :11])
        layer.eval()
        torch.testing.assert_close(layer(x)[0][:, :11], layer(changed)[0][:, :11], rtol=1e-12, atol=1e-12)


def test_thresholds_of_expert_choice_come_to_take_as_many_tokens_as_in_training() -> None:
    layer = build(routing="expert_choice", dtype=torch.float32, experts=8, active=2)
    with torch.no_grad():
        for _ in range(40):
            layer(torch.randn(4, 64, WIDTH) + 0.3)
        assert layer.routing is not None and layer.routing.load.tolist() == [64] * 8
        remembered = layer.thresholds.clone()
        layer.eval()(torch.randn(16, 64, WIDTH) + 0.3)
    assert torch.equal(remembered, layer.thresholds)
    torch.testing.assert_close(layer.routing.load / 1024, torch.full((8,), 0.25), rtol=0.15, atol=0)


def test_thresholds_are_a_mean_at_first_and_then_a_moving_average() -> None:
    layer = build(routing="expert_choice", dtype=torch.float32)
    expected, ends = torch.zeros(6), []
    with torch.no_grad():
        for step in range(25):
            x = torch.randn(1, 12, WIDTH)
            layer(x)
            end = (x[0] @ layer.router.weight.t()).softmax(-1).sort(dim=0, descending=True).values[3]  # 12 · 2 / 6
            ends.append(end)
            expected = torch.stack(ends).mean(0) if step < 10 else 0.9 * expected + 0.1 * end
    torch.testing.assert_close(layer.thresholds, expected)


def test_losses_are_those_of_the_papers() -> None:
    layer, x = build(routing="top_of_softmax", balance=0.3, z=0.07), torch.randn(2, 11, WIDTH, dtype=torch.float64)
    with in_float64(), auxiliary_losses() as losses:
        layer(x)
    logits = x.flatten(0, 1) @ layer.router.weight.t()
    share = (gates_of(layer, x) > 0).double().sum(0) / 44
    balance = 6 * sum(share[e] * logits.softmax(-1)[:, e].mean() for e in range(6))
    z = sum(torch.log(row.exp().sum()) ** 2 for row in logits) / 22
    routing = layer.routing
    assert routing is not None and not routing.logits.requires_grad
    torch.testing.assert_close(routing.balance_loss, balance.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(routing.z_loss, z.detach())
    torch.testing.assert_close(losses[0], 0.3 * balance + 0.07 * z, rtol=1e-6, atol=0)
    gradient = torch.autograd.grad(losses[0], layer.router.weight)[0]
    assert torch.isfinite(gradient).all() and gradient.any()


def test_balance_loss_is_one_when_even_and_the_number_of_experts_when_one_takes_all() -> None:
    one_takes_all = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    assert balance_loss(torch.zeros(8, 4), torch.tensor([2, 2, 2, 2])).item() == pytest.approx(1)
    assert balance_loss(one_takes_all, torch.tensor([8, 0, 0, 0])).item() == pytest.approx(4)


def test_auxiliary_losses_come_for_every_call_in_training_and_for_none_in_evaluation() -> None:
    layer, x = build(dtype=torch.float32), torch.randn(1, 8, WIDTH)
    layer(x)
    with auxiliary_losses() as outer:
        layer(x)
        with auxiliary_losses() as inner:
            layer(layer(x)[0])
        layer.eval()(x)
    assert (len(outer), len(inner)) == (1, 2)
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])


def test_one_token_reads_the_weights_of_its_experts_alone() -> None:
    layer, x = build(dtype=torch.float32, experts=16).eval(), torch.randn(1, 1, WIDTH)
    with torch.no_grad():
        y, _ = layer(x)
        assert layer.routing is not None and layer.routing.load.sum() == 2
        for expert in (layer.routing.load == 0).nonzero():
            layer.gate_and_in.weight[expert] = layer.out.weight[expert] = math.nan
        assert torch.equal(layer(x)[0], y)


@pytest.mark.parametrize(
    "changes", [{"shared": 2}, {"routing": "top_of_softmax", "active": 1}, {"experts": 1, "active": 1}]
)
def test_flops_are_those_that_torch_counts_and_only_experts_of_others_are_idle(changes: dict[str, Any]) -> None:
    layer, x = build(dtype=torch.float32, **changes), torch.randn(3, 20, WIDTH, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y, _ = layer(x)
        forward = flops_of_matrices(counter)
        y.sum().backward()
    assert layer.flops(20) == (forward / 60, (flops_of_matrices(counter) - forward) / 60)
    used = 3 * WIDTH * 10 * (layer.config.active + layer.config.shared) + WIDTH * layer.config.experts
    assert sum(weight.numel() for weight in layer.parameters()) - layer.idle_weights() == used


@pytest.mark.parametrize("load", [[3, 0, 4, 1], [0, 0, 8, 0]])
def test_one_kernel_for_all_groups_is_the_loop(load: list[int]) -> None:
    torch.manual_seed(0)
    rows, values, stack = (
        Rows.sorted_by_expert(torch.arange(8), torch.tensor(load), 8),
        torch.randn(8, 16),
        torch.randn(4, 24, 16),
    )
    hidden = products(values, stack, rows)
    torch.testing.assert_close(grouped_products(values, stack, rows), hidden)
    torch.testing.assert_close(grouped_outer_products(hidden, values, rows), outer_products(hidden, values, rows))


@each_rule
def test_halves_and_autocast_route_as_float32_does(rule: str) -> None:
    layer, x = build(routing=rule, dtype=torch.float32, shared=1), torch.randn(2, 16, WIDTH).bfloat16().float()
    with torch.no_grad():
        layer.router.weight.copy_(layer.router.weight.bfloat16())
        expected, routing = layer(x)[0], layer.routing
        with torch.autocast("cpu", torch.bfloat16):
            cast, of_cast = layer(x)[0], layer.routing
        half, of_half = layer.bfloat16()(x.bfloat16())[0], layer.routing
    assert cast.dtype == half.dtype == torch.bfloat16
    assert routing is not None and of_cast is not None and of_half is not None
    for other in (of_cast, of_half):
        assert torch.equal(other.tokens, routing.tokens) and other.logits.dtype == torch.float32
    for y in (cast, half):
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_gradients_under_autocast_come_in_the_types_of_the_weights() -> None:
    layer, x = build(dtype=torch.float32), torch.randn(2, 16, WIDTH, requires_grad=True)
    exact = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = layer(x)
    mine = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
    for one, other in zip(mine, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05 * other.abs().max().item())


@each_rule
def test_the_same_input_gives_the_same_bits(rule: str) -> None:
    layer, x = build(routing=rule, dtype=torch.float32), torch.randn(4, 50, WIDTH, requires_grad=True)
    runs = [torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()]) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, "experts: got 0, expected at least 1"),
        ({"hidden": 0}, "hidden: got 0"),
        ({"active": 7}, "active: got 7, expected at most experts, 6"),
        ({"active": 1}, "active: got 1 with routing 'softmax_of_top'.*expected 2 or more"),
        ({"shared": -1}, "shared: got -1"),
        ({"routing": "hash"}, "routing: got 'hash', expected one of softmax_of_top"),
        ({"capacity_factor": -1.0}, "capacity_factor: got -1.0"),
        ({"balance": math.nan}, "balance: got nan"),
        ({"z": math.inf}, "z: got inf"),
        ({"routing": "expert_choice", "capacity_factor": 1.0}, "capacity_factor: got 1.0 with routing 'expert_choice'"),
    ],
)
def test_impossible_configurations_name_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**changes)
