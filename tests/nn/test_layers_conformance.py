"""What holds for every mixer and every feed-forward layer; one that is not in CASES fails here."""

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
from verim.nn.mixers import (
    MIXERS,
    AttentionConfig,
    GRUConfig,
    LSTMConfig,
    Mamba2Config,
    MambaConfig,
    MinGRUConfig,
    MinLSTMConfig,
    Mixer,
    RNNConfig,
    RWKV4Config,
    RWKV7Config,
    S4DConfig,
)
from verim.ops import force_backend

WIDTH = 16
CASES: dict[type, list[Any]] = {
    AttentionConfig: [
        AttentionConfig(
            heads=4, kv_heads=2, head_dim=6, bias=True, out_bias=True, rotary_factor=3.0, rotary_context=200
        ),
        AttentionConfig(heads=1),
        AttentionConfig(heads=2, rotary_base=100.0),
        AttentionConfig(heads=2, kv_heads=1, window=5),
    ],
    MambaConfig: [
        MambaConfig(state=4),
        MambaConfig(state=3, expand=1, kernel=2, rank=2, bias=True, convolution_bias=False),
    ],
    Mamba2Config: [
        Mamba2Config(state=4, head_dim=8, groups=2, bias=True, delta_least=0.005, delta_most=0.01),
        Mamba2Config(state=3, head_dim=2, expand=1, kernel=1, gate_first=False, convolution_bias=False),
    ],
    RWKV4Config: [RWKV4Config(), RWKV4Config(inner=20)],
    RWKV7Config: [RWKV7Config(head_dim=4), RWKV7Config(head_dim=8, decay_rank=3, rate_rank=4, gate_rank=5)],
    RNNConfig: [RNNConfig(), RNNConfig(hidden=11, activation="relu")],
    GRUConfig: [GRUConfig(), GRUConfig(hidden=11)],
    LSTMConfig: [LSTMConfig(), LSTMConfig(hidden=11, forget_bias=0.0)],
    MinGRUConfig: [MinGRUConfig(kernel=3), MinGRUConfig(expand=1.4, candidate="linear")],
    MinLSTMConfig: [MinLSTMConfig(kernel=3), MinLSTMConfig(expand=0.7, candidate="linear", forget_bias=-1.0)],
    S4DConfig: [S4DConfig(state=4), S4DConfig(state=3, expand=1, kernel=2, initial="real")],
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


def joined(states: list[Any]) -> Any:
    return None if states[0] is None else type(states[0]).join(states)


def in_float64() -> AbstractContextManager[None]:
    """float64 runs the ops' definitions, on purpose."""
    return force_backend("reference")


def test_every_layer_is_covered() -> None:
    assert set(CASES) == {*MIXERS.values(), *FEED_FORWARDS.values()}


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
        kept = zip(held(state), held(final), strict=True)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=1e-12)
    for one, other in kept:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@each_config
def test_decoding_token_by_token_equals_the_whole_in_float32(config: Any) -> None:
    layer, x = build(config, dtype=torch.float32), torch.randn(2, 40, WIDTH)
    with torch.no_grad():
        whole, _ = layer(x)
        state, outputs = None, []
        for token in x.split(1, dim=1):
            y, state = layer(token, state)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-4, atol=1e-5)


@each_config
@pytest.mark.parametrize("length", [1, 7])
def test_state_takes_the_bytes_that_are_declared(config: Any, length: int) -> None:
    layer = build(config, dtype=torch.float32)
    with torch.no_grad():
        _, state = layer(torch.randn(3, length, WIDTH))
    assert (0 if state is None else state.bytes()) == layer.state_bytes(3, length)


@each_config
def test_rows_join_and_part_as_if_they_were_alone(config: Any) -> None:
    """Sequences of different length, prefilled alone, go on together; some end, some begin, none notices."""
    layer = build(config)
    sequences = [torch.randn(1, length, WIDTH, dtype=torch.float64) for length in (17, 9, 12)]
    with torch.no_grad(), in_float64():
        alone = [layer(x)[0][:, -4:] for x in sequences]
        states = [layer(x[:, :-4])[1] for x in sequences]
        one, state = layer(torch.cat([x[:, -4:-3] for x in sequences[:2]]), joined(states[:2]))
        state = joined([state, layer(sequences[2][:, -4:-3], states[2])[1]])
        two, state = layer(torch.cat([x[:, -3:-1] for x in sequences]), state)
        state = None if state is None else state.take(torch.tensor([2, 1]))
        three, state = layer(torch.cat([sequences[2][:, -1:], sequences[1][:, -1:]]), state)
    tolerance = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(one, torch.cat([y[:, :1] for y in alone[:2]]), **tolerance)
    torch.testing.assert_close(two, torch.cat([y[:, 1:3] for y in alone]), **tolerance)
    torch.testing.assert_close(three, torch.cat([alone[2][:, 3:], alone[1][:, 3:]]), **tolerance)


@each_config
def test_a_state_that_was_gone_on_from_can_be_gone_on_from_again(config: Any) -> None:
    layer, x = build(config), torch.randn(2, 14, WIDTH, dtype=torch.float64)
    other = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    with torch.no_grad(), in_float64():
        whole = layer(x)[0]
        _, state = layer(x[:, :6])
        _, state = layer(x[:, 6:8], state)
        aside, side = layer(other, state)
        first, later = layer(x[:, 8:11], state)
        last, _ = layer(x[:, 11:], later)
        again, _ = layer(other, state)
        layer(other, side)
        back = None if later is None else later.earlier(3)
        assert (back is not None) == hasattr(state, "seen")  # attention keeps what was, the others do not
        if back is not None:
            torch.testing.assert_close(layer(other, back)[0], aside, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([first, last], dim=1), whole[:, 8:], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(aside, again, rtol=0, atol=0)


@each_config
def test_gradients_reach_every_weight_and_the_state(config: Any) -> None:
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
        words = get_args(get_type_hints(type(config))[field.name])
        changed = next(word for word in words if word != value)
    else:
        changed = not value if isinstance(value, bool) else value * 2 if value else value + 2
    other = dataclasses.replace(config, **{field.name: changed})
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    mine, theirs = build(config).train(), build(other).train()
    same_weights = [w.shape for w in mine.parameters()] == [w.shape for w in theirs.parameters()]
    with in_float64(), auxiliary_losses() as losses:
        same_output = torch.equal(mine(x)[0], theirs(x)[0])
    half = len(losses) // 2
    assert not (same_weights and same_output and losses[:half] == losses[half:])


@each_config
def test_writers_write_and_flops_are_those_of_the_weights_at_least(config: Any) -> None:
    layer = build(config)
    weights = sum(m.weight.numel() for m in layer.modules() if isinstance(m, Matrix)) - layer.idle_weights()
    forward, backward = layer.flops(64)
    assert forward > 2 * weights or (forward == 2 * weights and not isinstance(layer, Mixer))
    assert backward >= 2 * forward * 0.9
    with torch.no_grad(), in_float64():
        for matrix in layer.writers():
            matrix.weight.zero_()
            if isinstance(matrix, torch.nn.Linear) and matrix.bias is not None:
                matrix.bias.zero_()
        assert not layer(torch.randn(1, 3, WIDTH, dtype=torch.float64))[0].any()
