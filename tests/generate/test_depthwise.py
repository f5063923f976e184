"""Depth-wise batching: rows at different recursions go through the shared blocks together, and none notices."""

import random
from collections.abc import Iterator

import pytest
import torch

from verim.generate import Engine, Limits, Sampling, Speculation, collect, complete
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import RWKV7ChannelMixConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MambaConfig, RWKV7Config
from verim.nn.recursion import RecursionConfig
from verim.nn.recursion_routing import ExpertChoiceConfig, TokenChoiceConfig
from verim.ops import force_backend

ATTENTION, MAMBA = (
    BlockConfig(AttentionConfig(heads=2, kv_heads=1), SwiGLUConfig(24)),
    BlockConfig(MambaConfig(state=4)),
)
EXPERTS, TOKENS = ExpertChoiceConfig(alpha=1.0), TokenChoiceConfig()
MODELS = {
    "attention": ((ATTENTION,), RecursionConfig(3, routing=EXPERTS)),
    "shared": ((ATTENTION,), RecursionConfig(3, routing=EXPERTS, cache="shared")),
    "tokens": ((ATTENTION,), RecursionConfig(3, "cycle", TOKENS)),
    "hybrid": ((ATTENTION, MAMBA), RecursionConfig(3, "cycle", ExpertChoiceConfig(bounded=False, decision="router"))),
    "rwkv7": ((BlockConfig(RWKV7Config(head_dim=8), RWKV7ChannelMixConfig(24)),), RecursionConfig(2, routing=EXPERTS)),
}
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """float64 runs the ops' definitions, on purpose."""
    with force_backend("reference"):
        yield


def build(name: str, threshold: float | None = None) -> LanguageModel:
    pattern, recursion = MODELS[name]
    torch.manual_seed(0)
    depth = max(1, len(pattern)) * recursion.recursions + 2 * recursion.outer
    model = LanguageModel(LanguageModelConfig(pattern, 16, depth, recursion=recursion)).double()
    for layer in model.layers():
        for out in layer.writers():
            torch.nn.init.normal_(out.weight, std=0.3)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    assert model.routed is not None
    for weight in model.routed.router.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@each_model
def test_requests_get_among_others_what_reading_the_whole_gives(name: str) -> None:
    """Tokens and depths, with requests that arrive and end at any time; never more state than declared."""
    model, source = build(name), random.Random(0)
    prompts = [[source.randrange(256) for _ in range(source.choice([1, 4, 9]))] for _ in range(6)]
    most = [source.choice([1, 4, 8]) for _ in prompts]
    limits = Limits(rows=4, prefill=5, state_bytes=model.state_bytes(4, 20) + 200)
    engine, events = Engine(model, limits=limits), []
    for prompt, count in zip(prompts, most, strict=True):
        engine.add(prompt, Sampling(temperature=0, max_tokens=count))
        for _ in range(source.choice([0, 2])):
            events += engine.step()
            assert engine.state_bytes() <= limits.state_bytes
    while engine.busy:
        events += engine.step()
        assert engine.state_bytes() <= limits.state_bytes
    assert engine.state_bytes() == 0
    depths = set()
    for prompt, count, got in zip(prompts, most, collect(iter(events), len(prompts)), strict=True):
        tokens, expected = list(prompt), []
        with torch.no_grad():
            for _ in range(count):
                logits, state = model(torch.tensor([tokens]))
                tokens.append(int(logits[0, -1].argmax()))
                expected.append(int(state.layers[0].depth))
        assert got.tokens == tokens[len(prompt) :] and list(got.depths) == expected
        depths |= set(expected)
    assert len(depths) > 1


def test_a_tick_computes_every_row_once_and_no_place_waits() -> None:
    model, shapes = build("tokens"), []
    model.blocks[0].mixer.qkv.register_forward_hook(lambda layer, inputs, output: shapes.append(inputs[0].shape[0]))
    engine = Engine(model)
    for seed in range(6):
        engine.add([seed], Sampling(seed=seed, max_tokens=12))
    first = engine.step()
    shapes.clear()
    spent = ticks = 0
    while len(engine.running) == 6:
        spent += sum(event.depth for event in engine.step())
        ticks += 1
    assert len(first) == 6 and set(shapes) == {6} and len(shapes) == ticks
    assert 6 * (ticks - 2) <= spent <= 6 * ticks  # every place of every tick but the unfinished tokens


@each_model
def test_speculation_is_the_same_text(name: str) -> None:
    model, draft = build(name), build("rwkv7")
    sampling = Sampling(temperature=0, max_tokens=6)
    alone = complete(model, [[3, 1, 4]], sampling)[0]
    for one, other in ((model, draft), (draft, model)):
        expected = alone if one is model else complete(draft, [[3, 1, 4]], sampling)[0]
        assert collect(Speculation(one, other, [3, 1, 4], sampling).events(), 1)[0].tokens == expected.tokens
