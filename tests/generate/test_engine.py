"""Continuous batching: what a request gets does not depend on its neighbours, whatever the architecture."""

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from generation_models import MODELS, VOCAB, build

from verim.errors import InputError
from verim.generate import ByteTokenizer, Completion, Engine, Event, Limits, Sampling, collect, complete, generate
from verim.models import LanguageModel
from verim.ops import force_backend

each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """float64 runs the ops' definitions, on purpose."""
    with force_backend("reference"):
        yield


def requests(count: int, seed: int = 0) -> list[tuple[list[int], Sampling]]:
    """Prompts of several lengths, some of the same, with settings of all kinds."""
    source = random.Random(seed)
    kinds = [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=20, top_p=0.9, temperature=1.3),
        Sampling(min_p=0.02, repetition_penalty=1.4),
    ]
    return [
        (
            [source.randrange(VOCAB) for _ in range(source.choice([1, 4, 4, 9, 17]))],
            replace(kinds[number % 4], seed=number, max_tokens=source.choice([1, 3, 9, 14])),
        )
        for number in range(count)
    ]


def alone(model: LanguageModel, prompt: Sequence[int], sampling: Sampling) -> Completion:
    return complete(model, [prompt], [sampling])[0]


@each_model
def test_greedy_tokens_are_those_of_the_whole_sequence(name: str) -> None:
    model = build(name)
    tokens = [3, 1, 4, 1, 5]
    drawn = complete(model, [tokens], Sampling(temperature=0, max_tokens=9), limits=Limits(prefill=2))[0]
    with torch.no_grad():
        for _ in range(9):
            tokens = [*tokens, int(model(torch.tensor([tokens]))[0][0, -1].argmax())]
    assert drawn == Completion(tokens[5:], "", "length")


@each_model
@pytest.mark.parametrize("limits", [Limits(), Limits(rows=3, prefill=6)], ids=["wide", "narrow"])
def test_a_request_gets_among_others_what_it_gets_alone(name: str, limits: Limits) -> None:
    """Requests of different length, arriving at any time, some cancelled, with few rows and short chunks."""
    model, engine, source = build(name), Engine(build(name), limits=limits), random.Random(1)
    asked, events, most = requests(9), [], 0
    for number, (prompt, sampling) in enumerate(asked):
        assert engine.add(prompt, sampling) == number
        for _ in range(source.choice([0, 0, 1, 5])):
            events += engine.step()
            most = max(most, len(engine.running))
        if number == 7:
            engine.cancel(6)
            engine.cancel(2)
    events += engine.events()
    assert most == 3 if limits.rows == 3 else most >= 3
    for number, got in enumerate(collect(iter(events), len(asked))):
        expected = alone(model, *asked[number])
        if number in (2, 6) and got != expected:  # cancelled, before its end
            assert got.finish == "" and expected.tokens[: len(got.tokens)] == got.tokens
        else:
            assert got == expected


@each_model
def test_states_never_exceed_the_limit_and_all_are_answered(name: str) -> None:
    model, asked = build(name), requests(8, seed=3)
    longest = max(len(prompt) + sampling.max_tokens for prompt, sampling in asked)
    limits = Limits(rows=100, state_bytes=model.state_bytes(3, longest) + 200, prefill=8)
    engine, finished, most = Engine(model, limits=limits), 0, 0
    for prompt, sampling in asked:
        engine.add(prompt, sampling)
    while engine.busy:
        finished += sum(event.finish != "" for event in engine.step())
        assert engine.state_bytes() <= limits.state_bytes
        most = max(most, len(engine.running))
    assert finished == len(asked) and most >= 3
    assert engine.state_bytes() == 0 and not engine.running


def test_a_long_prompt_does_not_keep_the_others_waiting() -> None:
    model = build("transformer")
    engine = Engine(model, limits=Limits(prefill=8))
    engine.add([1, 2], Sampling(max_tokens=60))
    engine.step()
    engine.add([5] * 100, Sampling(max_tokens=1))
    lengths = []
    model.register_forward_pre_hook(lambda model, arguments: lengths.append(arguments[0].shape))
    steps = 0
    while 1 in engine.running or 1 in [request.number for request in engine._waiting]:
        assert [event.request for event in engine.step()][:1] == [0]  # it gets its token in every step
        steps += 1
    assert steps == 13 and max(length for _, length in lengths) == 8


def test_prompts_of_one_length_are_read_together() -> None:
    model = build("mamba")
    shapes = []
    model.register_forward_pre_hook(lambda model, arguments: shapes.append(tuple(arguments[0].shape)))
    prompts = [[1, 2, 3], [4, 5, 6, 7], [7, 8, 9], [9, 9, 9]]
    complete(model, prompts, Sampling(max_tokens=2), limits=Limits(prefill=9))
    assert shapes == [(3, 3), (3, 1), (1, 4), (1, 1)]


@each_model
def test_recurrent_states_do_not_grow(name: str) -> None:
    model = build(name)
    engine = Engine(model)
    engine.add([1] * 10, Sampling(max_tokens=40))
    held = []
    while engine.busy:
        engine.step()
        held.append(engine.state_bytes())
    grows = model.state_bytes(1, 40) > model.state_bytes(1, 10)
    assert held[:-1] == [model.state_bytes(1, 10 + step) for step in range(39)]
    assert grows == (max(held) > held[0])


def test_events_tell_text_tokens_and_the_end() -> None:
    text = ByteTokenizer()
    model = build("mamba")
    sampling = Sampling(max_tokens=50, top_k=60)
    free = complete(model, ["ab", "ab"], sampling, text)
    assert free[0].tokens != free[1].tokens  # seeds count up
    assert free[0].text == text.decode(free[0].tokens) and free[0].finish == "length"
    assert complete(model, ["ab"], replace(sampling, seed=1), text)[0] == free[1]
    end = free[0].tokens[20]
    stopped = complete(model, ["ab"], replace(sampling, stop_tokens=(end,)), text)[0]
    first = free[0].tokens.index(end)
    assert stopped == Completion(free[0].tokens[: first + 1], text.decode(free[0].tokens[:first]), "stop")
    string = free[0].text[7:9]
    cut = complete(model, ["ab"], replace(sampling, stop=(string,)), text)[0]
    assert cut.finish == "stop" and cut.text == free[0].text[: free[0].text.index(string)]
    events = list(generate(model, ["ab"], replace(sampling, max_tokens=2), text))
    assert [type(event) for event in events] == [Event] * 2


def test_logits_that_are_not_finite_name_the_layer() -> None:
    model = build("hybrid")
    with torch.no_grad():
        model.blocks[2].mixer.out.weight[3, 4] = torch.nan
    with pytest.raises(InputError, match=r"prompt 0, after its 3 tokens and 0 drawn.*first in blocks.2.mixer"):
        complete(model, [[1, 2, 3]])
    with pytest.raises(InputError, match=r"weights blocks.2.mixer.out.weight are not finite"):
        complete(model, [[1, 2, 3]])


def test_an_overflow_in_the_middle_of_a_text_names_the_layer_and_the_request() -> None:
    model, prompts = build("window"), [[1, 2], [3]]
    sampling = Sampling(temperature=0, max_tokens=6)
    tokens = complete(model, prompts, sampling)[1].tokens
    overflowing = next(token for token in tokens if token not in complete(model, prompts[:1], sampling)[0].tokens)
    read = []
    model.register_forward_pre_hook(lambda model, arguments: read.append(arguments[0]))
    model.blocks[1].feed_forward.register_forward_hook(
        lambda layer, inputs, output: (output[0] / (read[-1] != overflowing)[..., None], None)
    )
    message = (
        rf"prompt 1, .* {tokens.index(overflowing) + 1} drawn ones: .* first in blocks.1.feed_forward .*all weights"
    )
    with pytest.raises(InputError, match=message):
        complete(model, prompts, sampling)


@pytest.mark.parametrize(
    ("prompts", "sampling", "limits", "message"),
    [
        ([[1], []], Sampling(), None, "prompt 1: got no token"),
        ([[1, 256]], Sampling(), None, "prompt 0: got token 256 at position 1, expected 0 to 255"),
        ([[1]], [Sampling()] * 2, None, "sampling: got 2 for 1 prompts"),
        (["text"], Sampling(), None, "prompts: got the text 'text' without a tokenizer"),
        ([[1]], Sampling(stop=("a",)), None, "stop: got .* without a tokenizer"),
        ([[1] * 50], Sampling(max_tokens=51), Limits(state_bytes=512 * 99), "together may be 100; shorten them"),
        ([[1]], Sampling(), Limits(state_bytes=8), "one token alone needs 512"),
    ],
)
def test_bad_input_is_named(prompts: list, sampling: object, limits: Limits | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        complete(build("transformer"), prompts, sampling, limits=limits)


@pytest.mark.parametrize("field", ["rows", "state_bytes", "prefill"])
def test_impossible_limits_name_the_field(field: str) -> None:
    with pytest.raises(InputError, match=f"{field}: got -1, expected at least"):
        Limits(**{field: -1})


def test_a_request_that_just_fits_is_answered() -> None:
    model = build("transformer")
    limits = Limits(state_bytes=512 * 99)
    assert len(complete(model, [[1] * 50], Sampling(max_tokens=50), limits=limits)[0].tokens) == 50


def test_going_beyond_the_trained_length_warns_once() -> None:
    model = build("mamba")
    model.config = replace(model.config, context=8)
    with pytest.warns(UserWarning, match="4 tokens and up to 5 more exceed the 8") as caught:
        complete(model, [[1] * 4, [1] * 6], Sampling(max_tokens=5))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complete(model, [[1] * 4], Sampling(max_tokens=4))


def test_a_window_that_training_never_filled_is_warned_of() -> None:
    model = build("window")
    model.config = replace(model.config, context=4)
    with pytest.warns(UserWarning, match="the window of block 0, 5 positions, is larger than the 4 that the model"):
        complete(model, [[1]], Sampling(max_tokens=2))
