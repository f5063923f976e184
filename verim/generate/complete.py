"""Prompts to texts: the whole of them, or token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from verim.errors import InputError
from verim.generate.engine import Engine, Limits
from verim.generate.request import Completion, Event
from verim.generate.sampling import Sampling
from verim.generate.text import Tokenizer
from verim.models import LanguageModel


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | str],
    sampling: Sampling | Sequence[Sampling] | None = None,
    tokenizer: Tokenizer | None = None,
    limits: Limits | None = None,
) -> Iterator[Event]:
    """Tokens of all prompts as they are drawn; an event names its prompt by its place in `prompts`.

    Prompts are lists of token numbers, or texts where there is a `tokenizer`. One `sampling` serves all of them, with
    seeds counting up from its own: prompt i draws with seed + i, so that equal prompts go different ways; a sequence
    of them is taken as it is. All prompts are checked before the first token: see `Engine.add` for what is raised.

    >>> from verim.models import LanguageModel, architecture_config
    >>> model = LanguageModel(architecture_config("mamba", 16))
    >>> [event.finish for event in generate(model, [[1, 2, 3]], Sampling(max_tokens=3))]
    ['', '', 'length']
    """
    engine = Engine(model, tokenizer, limits)
    for prompt, asked in zip(prompts, _each(sampling or Sampling(), len(prompts)), strict=True):
        engine.add(_tokens(prompt, tokenizer), asked)
    return engine.events()


def complete(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | str],
    sampling: Sampling | Sequence[Sampling] | None = None,
    tokenizer: Tokenizer | None = None,
    limits: Limits | None = None,
) -> list[Completion]:
    """The completions of all prompts, when all are done; arguments are those of `generate`."""
    return collect(generate(model, prompts, sampling, tokenizer, limits), len(prompts))


def collect(events: Iterator[Event], requests: int) -> list[Completion]:
    """The completions that events of `requests` requests, numbered from 0, tell of."""
    done = [Completion([], "", "") for _ in range(requests)]
    for event in events:
        old = done[event.request]
        old.tokens.append(event.token)
        depths = (*old.depths, event.depth) if event.depth else old.depths
        done[event.request] = Completion(old.tokens, old.text + event.text, event.finish, depths)
    return done


def _each(sampling: Sampling | Sequence[Sampling], prompts: int) -> Sequence[Sampling]:
    if isinstance(sampling, Sampling):
        return [replace(sampling, seed=(sampling.seed + number) % 2**63) for number in range(prompts)]
    if len(sampling) != prompts:
        raise InputError(f"sampling: got {len(sampling)} for {prompts} prompts, expected one for each, or one for all")
    return sampling


def _tokens(prompt: Sequence[int] | str, tokenizer: Tokenizer | None) -> Sequence[int]:
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise InputError(f"prompts: got the text {prompt[:20]!r} without a tokenizer; pass one, or token numbers")
    return tokenizer.encode(prompt)
