"""Recursion: blocks are shared, tokens take depths of their own, and chunks of a sequence give what the whole gives."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import FEED_FORWARDS, RWKV4ChannelMixConfig, RWKV7ChannelMixConfig, SwiGLUConfig, auxiliary_losses
from verim.nn.mixers import MIXERS, AttentionConfig, MambaConfig
from verim.nn.recursion import RecursionConfig
from verim.nn.recursion_routing import Depths, ExpertChoice, ExpertChoiceConfig, TokenChoiceConfig, Tokens
from verim.nn.state import TensorState
from verim.ops import force_backend

WIDTH, VOCAB, RECURSIONS = 16, 40, 3
_SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2, "kv_heads": 1},
    "mamba": {"state": 4},
    "mamba2": {"head_dim": 8},
    "rwkv7": {"head_dim": 8},
}
_FEED_FORWARDS = {"rwkv4": RWKV4ChannelMixConfig(24), "rwkv7": RWKV7ChannelMixConfig(24)}
BLOCKS = {
    name: BlockConfig(kind(**_SETTINGS.get(name, {})), _FEED_FORWARDS.get(name, SwiGLUConfig(24)))
    for name, kind in MIXERS.items()
}
ROUTES = {
    "experts": RecursionConfig(RECURSIONS, routing=ExpertChoiceConfig(alpha=1.0)),
    "foretold": RecursionConfig(
        RECURSIONS, "cycle", ExpertChoiceConfig((1.0, 0.7, 0.2), gate="tanh", decision="router", bounded=False)
    ),
    "tokens": RecursionConfig(RECURSIONS, routing=TokenChoiceConfig()),
}
SHARED = RecursionConfig(RECURSIONS, routing=ExpertChoiceConfig(bounded=False), cache="shared")
CASES = [(mixer, route) for mixer in BLOCKS for route in ("experts", "tokens")]
CASES += [("attention", "foretold"), ("mamba", "foretold"), ("attention", "shared")]
each_case = pytest.mark.parametrize(("mixer", "route"), CASES)
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """float64 runs the ops' definitions, on purpose."""
    with force_backend("reference"):
        yield


def build(mixer: str, route: str = "experts", seed: int = 0, shared: int = 1) -> LanguageModel:
    recursion = (ROUTES | {"shared": SHARED})[route]
    depth = shared * RECURSIONS + 2 * recursion.outer
    torch.manual_seed(seed)
    model = LanguageModel(LanguageModelConfig((BLOCKS[mixer],), WIDTH, depth, VOCAB, recursion=recursion)).double()
    for layer in model.layers():
        for out in layer.writers():
            torch.nn.init.normal_(out.weight, std=0.3)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    assert model.routed is not None
    for weight in model.routed.router.parameters():  # so that tokens differ in their depth
        torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length))


@pytest.mark.parametrize(
    ("sharing", "depth", "order"),
    [
        ("cycle", 6, (0, 1, 0, 1, 0, 1)),
        ("sequence", 6, (0, 0, 0, 1, 1, 1)),
        ("middle_cycle", 8, (0, 1, 2, 1, 2, 1, 2, 3)),
        ("middle_sequence", 8, (0, 1, 1, 1, 2, 2, 2, 3)),
    ],
)
def test_recursions_share_storage(sharing: Any, depth: int, order: tuple[int, ...]) -> None:
    """By address, at every application, also after a step and after loading: the paper's public code untied them."""
    config = LanguageModelConfig((BLOCKS["attention"],), WIDTH, depth, VOCAB, recursion=RecursionConfig(3, sharing))
    assert config.order == order
    model = LanguageModel(config)
    for _ in range(2):
        places: list[tuple[int, ...]] = []
        for block in model.blocks:
            block.register_forward_hook(
                lambda block, *_, to=places: to.append(tuple(weight.data_ptr() for weight in block.parameters()))
            )
        logits, _ = model(tokens(2, 5))
        own = [tuple(weight.data_ptr() for weight in block.parameters()) for block in model.blocks]
        assert places == [own[index] for index in order] and len(set(own)) == len(model.blocks)
        logits.sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        for block in model.blocks:
            block._forward_hooks.clear()
    assert len(list(model.parameters())) == len(set(dict(model.named_parameters(remove_duplicate=False))))


@pytest.mark.parametrize("sharing", ["cycle", "sequence", "middle_cycle", "middle_sequence"])
def test_recursion_without_routing_is_the_same_blocks_written_out(sharing: Any) -> None:
    torch.manual_seed(0)
    config = LanguageModelConfig(
        (BLOCKS["mamba"],), WIDTH, 8 if "middle" in sharing else 6, VOCAB, recursion=RecursionConfig(3, sharing)
    )
    model, read = LanguageModel(config).double(), tokens(2, 9)
    torch.nn.init.normal_(model.head.weight)
    x = model.embedding(read)
    for index in config.order:
        x = model.blocks[index](x)[0]
    whole, end = model(read)
    torch.testing.assert_close(model.head(model.norm(x)), whole, **EXACT)
    one, state = model(read[:, :4])
    two, state = model(read[:, 4:], state)
    torch.testing.assert_close(torch.cat([one, two], dim=1), whole, **EXACT)
    assert state.bytes() == end.bytes() == model.state_bytes(2, 9)


@each_case
@settings(max_examples=3, deadline=None)
@given(chunks=st.lists(st.integers(1, 7), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_chunks_and_decoding_equal_the_whole(mixer: str, route: str, chunks: list[int], seed: int) -> None:
    model = build(mixer, route, seed)
    read = tokens(3, sum(chunks) + 4)
    with torch.no_grad():
        whole, end = model(read)
        depths = model.routed.depths.of_tokens
        parts, state = [], None
        for chunk in read.split([*chunks, 1, 1, 1, 1], dim=1):
            logits, state = model(chunk, state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **EXACT)
    assert torch.equal(state.layers[0].depth, depths[:, -1])
    assert state.bytes() == end.bytes() <= model.state_bytes(3, read.shape[1])


@each_case
def test_rows_join_and_part_as_if_they_were_alone(mixer: str, route: str) -> None:
    model = build(mixer, route)
    read = [tokens(1, length) for length in (17, 9, 12)]
    with torch.no_grad():
        alone = [model(one)[0][:, -4:] for one in read]
        states = [model(one[:, :-4])[1] for one in read]
        one, state = model(torch.cat([r[:, -4:-3] for r in read[:2]]), type(states[0]).join(states[:2]))
        state = type(state).join([state, model(read[2][:, -4:-3], states[2])[1]])
        two, kept = model(torch.cat([r[:, -3:-1] for r in read]), state)
        three, _ = model(torch.cat([read[2][:, -1:], read[1][:, -1:]]), kept.take(torch.tensor([2, 1])))
        again, _ = model(torch.cat([r[:, -3:-1] for r in read]), state)  # an older state can be gone on from again
        twice, _ = model(read[1][:, -1:].expand(2, 1), kept.take(torch.tensor([1, 1])))
    torch.testing.assert_close(one, torch.cat([y[:, :1] for y in alone[:2]]), **EXACT)
    torch.testing.assert_close(two, torch.cat([y[:, 1:3] for y in alone]), **EXACT)
    torch.testing.assert_close(three, torch.cat([alone[2][:, 3:], alone[1][:, 3:]]), **EXACT)
    torch.testing.assert_close(again, two, rtol=0, atol=0)
    torch.testing.assert_close(twice, alone[1][:, 3:].expand(2, 1, VOCAB), **EXACT)


@each_case
@settings(max_examples=2, deadline=None)
@given(length=st.integers(2, 20), cut=st.integers(1, 19))
def test_the_future_reaches_nothing_in_evaluation_mode(mixer: str, route: str, length: int, cut: int) -> None:
    cut = 1 + cut % (length - 1)
    model, read = build(mixer, route), tokens(2, length)
    changed = read.clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % VOCAB
    with torch.no_grad():
        torch.testing.assert_close(model(read)[0][:, :cut], model(changed)[0][:, :cut], **EXACT)


def test_expert_choice_looks_ahead_in_training_mode_and_token_choice_does_not() -> None:
    for route, causal in (("experts", False), ("tokens", True)):
        model, read = build("attention", route).train(), tokens(2, 24)
        changed = read.clone()
        changed[:, 12:] = (changed[:, 12:] + 7) % VOCAB
        before, after = model(read)[0][:, :12], model(changed)[0][:, :12]
        assert torch.allclose(before, after, rtol=1e-9, atol=1e-11) == causal


@each_case
def test_gradients_reach_every_weight(mixer: str, route: str) -> None:
    model = build(mixer, route).train()
    with auxiliary_losses() as losses:
        logits, _ = model(tokens(3, 15))
    sum(losses, logits.square().mean()).backward()
    assert len(losses) == (2 if route == "tokens" else RECURSIONS - 1)
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("mixer", ["attention", "mamba"])
def test_rows_padded_in_training_are_what_each_gives_alone(mixer: str) -> None:
    """Token choice is causal, so training and evaluation are one function; gradients too."""
    model, read = build(mixer, "tokens"), tokens(4, 13)
    results = []
    for mode in (True, False):
        model.train(mode).zero_grad()
        logits, _ = model(read)
        logits.square().sum().backward()
        results.append([logits, *(weight.grad for weight in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("route", ["experts", "shared"])
def test_training_computes_only_the_tokens_that_are_routed_on(route: str) -> None:
    model, shapes = build("attention", route).train(), []
    model.blocks[1].feed_forward.register_forward_hook(lambda layer, inputs, output: shapes.append(inputs[0].shape[:2]))
    model(tokens(2, 24))
    assert [tuple(shape) for shape in shapes] == [(2, 24), (2, 16), (2, 8)]
    assert model.routed.depths.load.tolist() == [16, 16, 16] and model.routed.depths.mean == 2


@pytest.mark.parametrize("recursions", [2, 3, 4])
def test_caches_take_what_the_formulas_say(recursions: int) -> None:
    """Keys and values of the shared blocks where all tokens ask for more: (N + 1) / 2N, and 1 / N, of N blocks' own."""
    length, width = 24, 32
    block = BlockConfig(AttentionConfig(heads=2), SwiGLUConfig(8))
    plain = LanguageModel(LanguageModelConfig((block,), width, recursions)).state_bytes(2, length)
    for cache, part in (("recursion", (recursions + 1) / (2 * recursions)), ("shared", 1 / recursions)):
        routing = ExpertChoiceConfig(threshold=1e-9)
        recursion = RecursionConfig(recursions, "cycle", routing, cache)
        model = LanguageModel(LanguageModelConfig((block,), width, recursions, recursion=recursion)).eval()
        with torch.no_grad():
            _, state = model(torch.randint(0, 256, (2, length)))
        held = state.layers[0]
        counters = 8 * 2 * (recursions + 2)
        assert sum(part.bytes() for part in held.parts) == part * plain
        assert state.bytes() == model.state_bytes(2, length) == part * plain + counters
        pools = [layer.layers[0].pool for part in held.rounds if part is not None for layer in part.layers]
        page, pages = 2 * 16 * width * 4, sum(len(pool.keys) for pool in pools)
        needed = part * plain / page + 2 * len(pools)  # a page begun for each row
        assert part * plain <= pages * page and pages <= 1.5 * needed + 16 * len(pools)


def test_a_sequence_that_has_seen_nothing_has_a_state_of_zeros() -> None:
    """What `TensorState.blank` takes for granted, of every layer that has such a state."""
    x, found = torch.randn(2, 5, WIDTH, dtype=torch.float64), 0
    layers = {f"{name} {kind}": getattr(BLOCKS[name], kind) for name in BLOCKS for kind in ("mixer", "feed_forward")}
    assert {type(config) for config in layers.values()} >= set(MIXERS.values())
    for name, config in layers.items():
        layer = config.build(WIDTH).double()
        y, state = layer(x)
        if isinstance(state, TensorState):
            found += 1
            torch.testing.assert_close(layer(x, state.blank(2))[0], y, rtol=1e-12, atol=1e-12, msg=name)
    assert found >= len(MIXERS) + 1 and set(_FEED_FORWARDS) <= set(FEED_FORWARDS)


@settings(max_examples=60, deadline=None)
@given(
    willing=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3),
    cut=st.integers(0, 12),
    capacity=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.9]),
)
def test_room_is_given_to_the_first_that_pass(willing: list[list[bool]], cut: int, capacity: float) -> None:
    router = ExpertChoice(ExpertChoiceConfig((1.0, capacity)), 4, 2)
    expected = []
    for row in willing:
        held, taken = 0, []
        for position, wants in enumerate(row):
            taken.append(wants and held < -int(-capacity * (position + 1) // 1))
            held += taken[-1]
        expected.append(taken)
    asked, found = torch.tensor(willing), []
    seen = taken_before = torch.zeros(len(willing), dtype=torch.int64)
    for part in asked.split([cut, 12 - cut], dim=1):
        where = Tokens(torch.arange(part.numel()), part.shape[1], seen)
        chosen = router.passing(1, part.flatten(), where, taken_before) if part.numel() else torch.zeros(0).long()
        kept = torch.zeros(part.numel(), dtype=torch.bool).index_fill(0, chosen, True).view(part.shape)
        found.append(kept)
        seen, taken_before = seen + part.shape[1], taken_before + kept.sum(1)
    assert torch.cat(found, dim=1).tolist() == expected


def test_what_is_reported_of_depths() -> None:
    depths = Depths(torch.tensor([[1, 3, 2, 1], [1, 3, 3, 1]]), 3)
    assert depths.mean == 15 / 8 and depths.load.tolist() == [4, 1, 3] and depths.dead == 0.5
    assert depths.largest_violation == pytest.approx(4 / (8 / 3) - 1)


def test_the_threshold_learns_what_training_chooses() -> None:
    """With the auxiliary loss alone the decision of decoding comes to agree with the choice of training."""
    for decision in ("loss", "router"):
        torch.manual_seed(1)
        recursion = RecursionConfig(2, "cycle", ExpertChoiceConfig(decision=decision, coefficient=1.0))
        model = LanguageModel(LanguageModelConfig((BLOCKS["mamba"],), WIDTH, 2, VOCAB, recursion=recursion)).double()
        optimiser = torch.optim.Adam(model.routed.router.parameters(), 0.03)
        for _ in range(80):
            with auxiliary_losses() as losses:
                model(tokens(8, 20))
            sum(losses).backward()
            optimiser.step()
            optimiser.zero_grad()
        assert model.routed.router.sampling_accuracy[0] > 0.85


def test_loss_free_balance_moves_the_biases_against_the_load() -> None:
    torch.manual_seed(0)
    recursion = RecursionConfig(2, "cycle", TokenChoiceConfig(balance="bias", rate=0.1))
    model = LanguageModel(LanguageModelConfig((BLOCKS["mamba"],), WIDTH, 2, VOCAB, recursion=recursion)).double()
    torch.nn.init.normal_(model.routed.router.score.weight)
    violations = []
    for _ in range(30):
        model(tokens(8, 20))
        violations.append(model.routed.depths.largest_violation)
    assert min(violations[-5:]) < 0.2 and model.routed.router.bias.sum().abs() < 1e-9


@pytest.mark.parametrize("route", [*ROUTES, "shared"])
def test_configurations_survive_json(route: str) -> None:
    config = build("attention", route).config
    assert LanguageModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: LanguageModelConfig((BLOCKS["gru"],), 8, 7, recursion=RecursionConfig(3)),
            "depth: got 7, expected 2 and a multiple of recursions, 3, for sharing 'middle_cycle': 5, 8, 11",
        ),
        (
            lambda: LanguageModelConfig((BLOCKS["gru"],), 8, 7, recursion=RecursionConfig(3, "cycle")),
            "depth: got 7, expected a multiple of recursions, 3",
        ),
        (lambda: RecursionConfig(0), "recursion.recursions: got 0, expected at least 1"),
        (lambda: RecursionConfig(2, "spiral"), "recursion.sharing: got 'spiral', expected one of cycle, sequence"),  # type: ignore[arg-type]
        (lambda: RecursionConfig(2, cache="none"), "recursion.cache: got 'none', expected one of recursion, shared"),  # type: ignore[arg-type]
        (lambda: RecursionConfig(2, cache="shared"), "recursion.cache: got 'shared' without routing"),
        (lambda: RecursionConfig(2, "sequence", TokenChoiceConfig()), "recursion.sharing: got 'sequence' with routing"),
        (lambda: ExpertChoiceConfig((1.0, 0.5, 0.5)), r"capacities: got \(1.0, 0.5, 0.5\), expected .* falls"),
        (lambda: ExpertChoiceConfig((0.9, 0.5)), "capacities: got .* begins with 1"),
        (lambda: RecursionConfig(3, routing=ExpertChoiceConfig((1.0, 0.5))), "capacities: got 2 for 3 recursions"),
        (lambda: ExpertChoiceConfig(threshold=1.0), "threshold: got 1.0, expected a probability between 0 and 1"),
        (lambda: ExpertChoiceConfig(threshold=float("nan")), "threshold: got nan"),
        (lambda: ExpertChoiceConfig(gate="relu"), "gate: got 'relu', expected one of sigmoid, tanh"),  # type: ignore[arg-type]
        (lambda: ExpertChoiceConfig(alpha=0.0), "alpha: got 0.0"),
        (lambda: TokenChoiceConfig(balance="none"), "balance: got 'none', expected one of loss, bias"),  # type: ignore[arg-type]
        (
            lambda: _model(AttentionConfig(heads=1, window=4)),
            r"pattern\[0\].mixer.window: got 4, expected 0: with routing",
        ),
        (
            lambda: _model(MambaConfig(), cache="shared"),
            r"recursion.cache: got 'shared' with pattern\[0\].mixer MambaConfig",
        ),
    ],
    ids=range(17),
)
def test_what_cannot_work_is_refused_by_name(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        change()


def _model(mixer: Any, cache: Any = "recursion") -> LanguageModel:
    recursion = RecursionConfig(2, "cycle", ExpertChoiceConfig(), cache)
    return LanguageModel(LanguageModelConfig((BlockConfig(mixer),), 8, 2, recursion=recursion))


def test_a_stored_recursion_names_what_it_has_wrong() -> None:
    value = build("attention").config.to_json()
    for change, message in (
        ({"recursions": 3, "routing": {"kind": "roulette"}}, "recursion.routing.kind: got 'roulette', expected one of"),
        ({"recursions": 3, "shareing": "cycle"}, "recursion.shareing: unknown"),
    ):
        with pytest.raises(InputError, match=message):
            LanguageModelConfig.from_json(value | {"recursion": change})
