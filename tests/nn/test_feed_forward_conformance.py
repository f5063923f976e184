"""What holds for every feed-forward layer; one that is not in CASES fails here."""

import dataclasses
from contextlib import AbstractContextManager
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.nn import (
    FEED_FORWARDS,
    GELUConfig,
    Matrix,
    MixtureOfExpertsConfig,
    RWKV4ChannelMixConfig,
    RWKV7ChannelMixConfig,
    SwiGLUConfig,
    auxiliary_losses,
)
from verim.ops import force_backend

WIDTH = 16
CASES: dict[type, list[Any]] = {
    SwiGLUConfig: [SwiGLUConfig(hidden=24), SwiGLUConfig(hidden=7, bias=True)],
    GELUConfig: [GELUConfig(hidden=24), GELUConfig(hidden=7, bias=True)],
    MixtureOfExpertsConfig: [
        MixtureOfExpertsConfig(experts=4, hidden=12, shared=1, capacity_factor=0.4),
        MixtureOfExpertsConfig(experts=3, hidden=7, active=1, routing="top_of_softmax"),
        MixtureOfExpertsConfig(experts=4, hidden=9, routing="expert_choice"),
    ],
    RWKV4ChannelMixConfig: [RWKV4ChannelMixConfig(), RWKV4ChannelMixConfig(hidden=7)],
    RWKV7ChannelMixConfig: [RWKV7ChannelMixConfig(), RWKV7ChannelMixConfig(hidden=7)],
}
CONFIGS = [config for configs in CASES.values() for config in configs]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


def build(config: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """In evaluation mode: training may look at the whole batch (the capacity of experts, expert choice)."""
    torch.manual_seed(seed)
    return config.build(WIDTH).to(dtype).eval()


def held(state: Any) -> tuple[Tensor, ...]:
    return () if state is None else state.tensors()


def in_float64() -> AbstractContextManager[None]:
    """float64 runs the ops' definitions, on purpose."""
    return force_backend("reference")


def test_every_feed_forward_layer_is_covered() -> None:
    assert set(CASES) == set(FEED_FORWARDS.values())


@each_config
@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 23), cut=st.integers(0, 22), batch=st.integers(1, 3))
def test_future_does_not_reach_the_past(config: Any, length: int, cut: int, batch: int) -> None:
    cut = cut % length
    layer, x = build(config), torch.randn(batch, length, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, cut:] += 1
    with torch.no_grad(), in_float64():
        before, after = layer(x)[0], layer(changed)[0]
    torch.testing.assert_close(before[:, :cut], after[:, :cut], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[:, cut], after[:, cut], rtol=1e-9, atol=1e-9)


@each_config
@settings(max_examples=15, deadline=None)
@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_chunks_with_state_equal_the_whole(config: Any, chunks: list[int]) -> None:
    layer, x = build(config), torch.randn(2, sum(chunks), WIDTH, dtype=torch.float64)
    with torch.no_grad(), in_float64():
        whole, final = layer(x)
        parts, state = [], None
        for chunk in x.split(chunks, dim=1):
            y, state = layer(chunk, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=1e-12)
    for one, other in zip(held(state), held(final), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@each_config
@pytest.mark.parametrize("length", [1, 7])
def test_state_takes_the_bytes_that_are_declared(config: Any, length: int) -> None:
    layer = build(config, dtype=torch.float32)
    with torch.no_grad():
        _, state = layer(torch.randn(3, length, WIDTH))
    assert sum(tensor.nbytes for tensor in held(state)) == layer.state_bytes(3, length)


@each_config
def test_rows_join_and_part_as_if_they_were_alone(config: Any) -> None:
    """Sequences of different length, prefilled alone, go on together and part again."""
    layer = build(config)
    sequences = [torch.randn(1, length, WIDTH, dtype=torch.float64) for length in (7, 3, 5)]
    with torch.no_grad(), in_float64():
        alone = [layer(x)[0][:, -2:] for x in sequences]
        states = [layer(x[:, :-2])[1] for x in sequences]
        together = None if states[0] is None else type(states[0]).join(states)
        one, state = layer(torch.cat([x[:, -2:-1] for x in sequences]), together)
        state = None if state is None else state.take(torch.tensor([2, 0]))
        two, _ = layer(torch.cat([sequences[2][:, -1:], sequences[0][:, -1:]]), state)
    torch.testing.assert_close(one, torch.cat([y[:, :1] for y in alone]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(two, torch.cat([alone[2][:, 1:], alone[0][:, 1:]]), rtol=1e-10, atol=1e-12)


@each_config
def test_gradients_reach_every_weight(config: Any) -> None:
    layer = build(config, dtype=torch.float32)
    _, state = layer(torch.randn(2, 15, WIDTH))
    y, _ = layer(torch.randn(2, 15, WIDTH), state)
    y.square().sum().backward()
    for name, weight in layer.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("config", "field"),
    [(configs[0], field) for configs in CASES.values() for field in dataclasses.fields(configs[0])],
    ids=lambda case: getattr(case, "name", str(case)),
)
def test_every_configuration_field_is_read(config: Any, field: dataclasses.Field[Any]) -> None:
    """Changing the field changes the weights, or the output or the auxiliary losses of training."""
    value = getattr(config, field.name)
    if isinstance(value, str):
        changed = next(word for word in get_args(get_type_hints(type(config))[field.name]) if word != value)
    else:
        changed = not value if isinstance(value, bool) else value * 2 if value else value + 2
    other = dataclasses.replace(config, **{field.name: changed})
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    mine, theirs = build(config).train(), build(other).train()
    same_weights = [w.shape for w in mine.parameters()] == [w.shape for w in theirs.parameters()]
    with in_float64(), auxiliary_losses() as losses:
        assert not same_weights or not torch.equal(mine(x)[0], theirs(x)[0]) or not torch.equal(*losses)


@each_config
def test_writers_write_and_flops_are_those_of_the_weights_at_least(config: Any) -> None:
    layer = build(config)
    weights = sum(m.weight.numel() for m in layer.modules() if isinstance(m, Matrix)) - layer.idle_weights()
    forward, backward = layer.flops(64)
    assert forward >= 2 * weights and backward >= 2 * forward * 0.9
    with torch.no_grad(), in_float64():
        for matrix in layer.writers():
            matrix.weight.zero_()
            if isinstance(matrix, torch.nn.Linear) and matrix.bias is not None:
                matrix.bias.zero_()
        assert not layer(torch.randn(1, 3, WIDTH, dtype=torch.float64))[0].any()
