"""Mixture-of-Recursions: parameters, caches, tokens that no recursion is left for."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtMost, Exactly, Goldens
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import SwiGLUConfig
from verim.nn.mixers import AttentionConfig
from verim.nn.recursion import Cache, RecursionConfig
from verim.nn.recursion_routing import ExpertChoiceConfig
from verim.train import AdamWConfig
from verim.train.step import update
from verim.train.task import with_auxiliary_losses

_PAPER = "Bae et al. 2025, arXiv 2507.10524"


@claim(
    id="mor-parameters",
    area="mor",
    text="With two recursions half the parameters make a model as deep: 167 of 315 million, with three 118",
    source=f"{_PAPER}, table 3",
    expected=Goldens({"vanilla": 315, "MoR-2": 167, "MoR-3": 118}, tolerance=0.5),
    cost=1,
    kind="computed",
    remark="the paper's 360 M: 32 blocks of width 960, without embeddings; the first and the last are not shared",
)
def parameters(width: int = 960, hidden: int = 2560, heads: int = 15, kv_heads: int = 5) -> Measurement:
    block = BlockConfig(AttentionConfig(heads=heads, kv_heads=kv_heads), SwiGLUConfig(hidden))
    plain = LanguageModelConfig((block,), width, 32, tied=True)
    counts = {"vanilla": _millions(plain)}
    for recursions in (2, 3):
        recursion = RecursionConfig(recursions, "middle_cycle", ExpertChoiceConfig())
        counts[f"MoR-{recursions}"] = _millions(replace(plain, recursion=recursion))
    return Measurement(counts, "millions of weights of blocks, norms and routers, counted")


def _millions(config: LanguageModelConfig) -> float:
    """Weights beside the embedding, which is the head too."""
    with torch.device("meta"):
        model = LanguageModel(config)
    return (model.parameter_count().total - config.vocab * config.width) / 1e6


def _cached(recursions: int, cache: Cache, length: int) -> float:
    """Keys and values that recursions keep over those of as many blocks of their own; all tokens ask for all."""
    width, rows = 32, 2
    block = BlockConfig(AttentionConfig(heads=2), SwiGLUConfig(8))
    plain = LanguageModelConfig((block,), width, recursions)
    routing = ExpertChoiceConfig(threshold=1e-9)
    held = []
    for config in (replace(plain, recursion=RecursionConfig(recursions, "cycle", routing, cache)), plain):
        model = LanguageModel(config).eval()
        with torch.inference_mode():
            held.append(model(torch.randint(0, config.vocab, (rows, length)))[1].bytes())
    counters = 8 * rows * (recursions + 2)
    return (held[0] - counters) / held[1]


def _caches(cache: Cache, length: int) -> Measurement:
    return Measurement(
        {f"N = {count}": _cached(count, cache, length) for count in (2, 3, 4)},
        f"bytes of keys and values after {length} tokens over those of N blocks of their own, held by the state, its "
        "counters apart",
    )


@claim(
    id="mor-cache-by-recursion",
    area="mor",
    text="Keys and values kept by recursion take (N + 1) / 2N of the plain model's memory",
    source=f"{_PAPER}, section 2.2.2",
    expected=Goldens({"N = 2": 3 / 4, "N = 3": 4 / 6, "N = 4": 5 / 8}, tolerance=1e-9),
    cost=1,
    kind="measured",
    remark="of the shared blocks, at capacities N/N ... 1/N, and of a length that N divides",
)
def cache_by_recursion(length: int = 240) -> Measurement:
    return _caches("recursion", length)


@claim(
    id="mor-cache-shared",
    area="mor",
    text="Keys and values shared over recursions take 1/N of the plain model's memory",
    source=f"{_PAPER}, section 2.2.2",
    expected=Goldens({"N = 2": 1 / 2, "N = 3": 1 / 3, "N = 4": 1 / 4}, tolerance=1e-9),
    cost=1,
    kind="measured",
)
def cache_shared(length: int = 240) -> Measurement:
    return _caches("shared", length)


@claim(
    id="mor-flops",
    area="mor",
    text="At equal tokens two recursions take a quarter fewer FLOPs",
    source=f"{_PAPER}, section 3.1 (12.3e18 against 16.5e18)",
    expected=Exactly(0.75, tolerance=0.02),
    cost=1,
    kind="computed",
    remark="rounded: the outer blocks and the head are whole in both models; the paper counts the forward pass alone",
)
def flops(width: int = 960, depth: int = 32, length: int = 2048) -> Measurement:
    block = BlockConfig(AttentionConfig(heads=15, kv_heads=5), SwiGLUConfig(2560))
    plain = LanguageModelConfig((block,), width, depth, vocab=49152, tied=True)
    routed = replace(plain, recursion=RecursionConfig(2, "middle_cycle", ExpertChoiceConfig()))
    with torch.device("meta"):
        counted = [LanguageModel(config).flops(length) for config in (routed, plain)]
    return Measurement(
        counted[0] / counted[1], f"training FLOPs a token, MoR-2 over plain, width {width}, {depth} deep"
    )


@claim(
    id="mor-dead-tokens",
    area="mor",
    text="With an auxiliary loss and a linear router hardly any token is dead",
    source=f"{_PAPER}, table 13 (0.1 %)",
    expected=AtMost(0.01),
    cost=3,
    kind="measured",
    remark="dead: at its position no sequence of the batch takes the last recursion; chance makes (1 − 1/N)^batch so",
)
def dead_tokens(recursions: Sequence[int] = (2, 3), steps: int = 10, batch: int = 32) -> list[Measurement]:
    found = []
    for count in recursions:
        block = BlockConfig(AttentionConfig(heads=2), SwiGLUConfig(64))
        recursion = RecursionConfig(count, "middle_cycle", ExpertChoiceConfig())
        model = LanguageModel(LanguageModelConfig((block,), 32, 2 + count, recursion=recursion))
        optimiser = AdamWConfig(0.01).build(model)
        for _ in range(steps):
            tokens = torch.randint(0, model.config.vocab, (batch, 65))
            update(model, optimiser, with_auxiliary_losses(model, (tokens[:, :-1], tokens[:, 1:])), clip=1.0)
        assert model.routed is not None and model.routed.depths is not None, "a routed model that ran"
        conditions = f"share of dead positions after {steps} steps, N = {count}, batch {batch}, width 32, random tokens"
        found.append(Measurement(model.routed.depths.dead, conditions))
    return found
