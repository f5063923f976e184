"""How fast a Mixture-of-Recursions decodes beside a plain transformer as deep, every cost counted."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from verim.generate import Engine, Limits, Sampling
from verim.models import LanguageModel, LanguageModelConfig
from verim.nn.recursion_routing import ExpertChoiceConfig

ROUNDS = 3
NAMES = ("vanilla", "mor-2", "mor-3", "mor-4")


def decoding_records(config: Callable[[str], LanguageModelConfig], batch: int, length: int) -> list[dict[str, Any]]:
    """Tokens a second of each model at `batch` sequences, and at as many as fit where `batch` plain ones do.

    Sequences begin with one token and come to `length`. Embedding, routers, cache writes, head and drawing all count.
    The weights are random and the routers ask for every recursion, so that the depths are what the capacities allow.
    The models take turns; the median of `ROUNDS` counts.
    """
    models = {name: _model(config(name)) for name in NAMES}
    memory = _bytes(models["vanilla"], batch, length)
    batches = {
        name: {"equal": batch, "largest": largest_batch(model, memory, length)} for name, model in models.items()
    }
    for name, model in models.items():
        decode(model, batches[name]["equal"], 4)  # what a first call costs once
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for name, model in models.items():
            for kind, rows in batches[name].items():
                rates.setdefault((name, kind), []).append(decode(model, rows, length))
    return [
        {
            "model": name,
            "batch": batches[name][kind],
            "kind": kind,
            "tokens_per_second": statistics.median(rate for rate, _ in found),
            "mean_depth": statistics.mean(depth for _, depth in found),
        }
        for (name, kind), found in rates.items()
    ]


def decode(model: LanguageModel, rows: int, length: int) -> tuple[float, float]:
    """Tokens a second of `rows` sequences that grow to `length`, and the mean depth of their tokens."""
    engine = Engine(model, limits=Limits(rows=rows, prefill=max(512, rows)))
    for number in range(rows):
        engine.add([number % model.config.vocab], Sampling(temperature=0, max_tokens=length - 1))
    tokens = depth = 0
    began = time.perf_counter()
    for event in engine.events():
        tokens, depth = tokens + 1, depth + event.depth
    return tokens / (time.perf_counter() - began), depth / tokens


def largest_batch(model: LanguageModel, memory: int, length: int) -> int:
    """How many sequences of `length` fit beside the weights into `memory` bytes."""
    rows = 1
    while _bytes(model, rows + 1, length) <= memory:
        rows += 1
    return rows


def _bytes(model: LanguageModel, rows: int, length: int) -> int:
    return 4 * model.parameter_count().total + model.state_bytes(rows, length)


def _model(config: LanguageModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    recursion = config.recursion
    if recursion is not None and isinstance(recursion.routing, ExpertChoiceConfig):
        config = replace(config, recursion=replace(recursion, routing=replace(recursion.routing, threshold=1e-9)))
    model = LanguageModel(config).eval()
    torch.nn.init.normal_(model.head.weight, std=config.width**-0.5)
    return model
