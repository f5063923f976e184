"""Speculative decoding gives what the large model alone gives: the same text, or the same distribution."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from generation_models import MODELS, build
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.generate import ByteTokenizer, Sampling, Speculation, collect, complete
from verim.generate.draws import uniforms
from verim.generate.sampler import probabilities
from verim.generate.speculative import judged
from verim.models import LanguageModel
from verim.ops import force_backend


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """float64 runs the ops' definitions, on purpose."""
    with force_backend("reference"):
        yield


def near(model: LanguageModel, noise: float) -> LanguageModel:
    """A draft that agrees with `model` often, not always."""
    draft = LanguageModel(model.config).double()
    draft.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        draft.head.weight += noise * torch.randn(draft.head.weight.shape, generator=generator)
    return draft


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_plain_decoding(name: str) -> None:
    model, prompt = build(name), list(b"In short")
    sampling = Sampling(temperature=0, max_tokens=18, repetition_penalty=1.2)
    plain = complete(model, [prompt], sampling)[0]
    for draft, ahead in ((near(model, 0.1), 4), (build("hybrid", 5), 1), (model, 7)):
        speculation = Speculation(model, draft, prompt, sampling, ahead=ahead)
        assert collect(speculation.events(), 1)[0] == plain
        assert (speculation.acceptance == 1) == (draft is model)
    assert Speculation(model, model, prompt).acceptance == 0  # nothing was proposed yet


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), proposals=st.integers(0, 2), sharp=st.sampled_from([0.1, 1.0, 4.0, 40.0]))
def test_what_is_judged_is_distributed_as_wanted(seed: int, proposals: int, sharp: float) -> None:
    """Exactly: over a grid of numbers, the first token's share is its probability."""
    torch.manual_seed(seed)
    vocab, grid = 3, 16
    wanted = (sharp * torch.randn(proposals + 1, vocab, dtype=torch.float64)).softmax(-1)
    drafted = (sharp * torch.randn(proposals, vocab, dtype=torch.float64)).softmax(-1)
    first = torch.zeros(vocab, dtype=torch.float64)
    places = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    for chosen in itertools.product(range(vocab), repeat=proposals):
        weight = torch.stack([drafted[place, token] for place, token in enumerate(chosen)]).prod() if chosen else 1.0
        for accept, final in itertools.product(places if proposals else places[:1], places):
            numbers = torch.stack([accept] * proposals + [final])
            accepted, token = judged(wanted, drafted, torch.tensor(chosen, dtype=torch.int64), numbers)
            share = weight / grid / (grid if proposals else 1)
            first[chosen[0] if accepted else token] += share
    torch.testing.assert_close(first, wanted[0], rtol=0, atol=2.1 / grid)


def tiny(name: str, seed: int, vocab: int) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(replace(MODELS[name], width=8, depth=len(MODELS[name].pattern), vocab=vocab))
    torch.nn.init.normal_(model.head.weight, std=0.4)
    return model


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("transformer", Sampling(max_tokens=3)),
        ("mamba", Sampling(max_tokens=3)),
        ("window", Sampling(max_tokens=3, top_k=2, repetition_penalty=1.3)),
    ],
)
def test_sampled_texts_have_the_large_models_distribution(name: str, sampling: Sampling) -> None:
    vocab, runs, prompt = 3, 300, [1, 0]
    model, draft = tiny(name, 1, vocab), tiny(name, 2, vocab)
    expected = {}
    for text in itertools.product(range(vocab), repeat=3):
        chance, tokens = 1.0, list(prompt)
        for token in text:
            with torch.no_grad():
                logits = model(torch.tensor([tokens]))[0][:, -1]
            seen = torch.zeros(1, vocab, dtype=torch.bool)
            seen[0, tokens] = True
            chance *= float(probabilities(logits, sampling, seen)[0, token])
            tokens.append(token)
        expected[text] = chance
    counts = dict.fromkeys(expected, 0)
    rejected = 0
    with force_backend("auto"):
        for seed in range(runs):
            speculation = Speculation(model, draft, prompt, replace(sampling, seed=seed), ahead=2)
            counts[tuple(collect(speculation.events(), 1)[0].tokens)] += 1
            rejected += speculation.proposed - speculation.accepted
    assert rejected > runs / 20
    assert all(expected[text] > 0 for text, count in counts.items() if count)
    chi_square = sum(
        (counts[text] - runs * chance) ** 2 / (runs * chance) for text, chance in expected.items() if chance
    )
    assert chi_square < 56  # at most 26 degrees of freedom: exceeded less than once in a thousand times


def test_text_and_stops_are_those_of_any_request() -> None:
    model, text = build("transformer"), ByteTokenizer()
    sampling = Sampling(temperature=0, max_tokens=25)
    plain = complete(model, ["Once"], sampling, text)[0]
    stop = replace(sampling, stop_tokens=(plain.tokens[9],))
    draft = near(model, 0.05)
    got = collect(Speculation(model, draft, list(b"Once"), stop, text).events(), 1)[0]
    assert got == complete(model, ["Once"], stop, text)[0] and got.finish == "stop"


def test_numbers_of_a_speculation_follow_from_its_seed() -> None:
    model = build("mamba")
    draft = near(model, 0.2)
    one, two, other = (
        collect(Speculation(model, draft, [1, 2], Sampling(seed=seed, max_tokens=20)).events(), 1) for seed in (1, 1, 2)
    )
    assert one == two != other
    assert uniforms(torch.tensor([1]), torch.tensor([0]), 2).shape == (1, 2)


def test_bad_input_is_named() -> None:
    model = build("transformer")
    other = LanguageModel(replace(model.config, vocab=99))
    with pytest.raises(InputError, match="draft: got a model of 99 tokens for one of 256"):
        Speculation(model, other, [1])
    with pytest.raises(InputError, match="ahead: got 0"):
        Speculation(model, model, [1], ahead=0)
    with pytest.raises(InputError, match="prompt: got token 256 at position 0"):
        Speculation(model, model, [256])
