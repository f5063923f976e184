"""Mixture-of-Recursions beside a plain transformer as deep: time, memory, quality, throughput. They take minutes."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from verim.anatomy.allocations import allocator_peak
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost
from verim.claims.timing import time_ratio
from verim.models import LanguageModel
from verim.recipes import mor, mor_decoding
from verim.train import AdamWConfig
from verim.train.step import update
from verim.train.task import with_auxiliary_losses

_PAPER = "Bae et al. 2025, arXiv 2507.10524"
_CONDITIONS = "the paper's are 360 M parameters on four GPUs"
Step = Callable[[], object]


def _step(name: str, width: int, batch: int, length: int) -> tuple[nn.Module, Step]:
    """A model of the recipe and its training step on random bytes."""
    model = LanguageModel(mor.Experiment(width=width).config(name))
    optimiser = AdamWConfig(0.01).build(model)
    tokens = torch.randint(0, model.config.vocab, (batch, length + 1))

    def train() -> None:
        update(model, optimiser, with_auxiliary_losses(model, (tokens[:, :-1], tokens[:, 1:])), clip=1.0)

    return model, train


@claim(
    id="mor-training-time",
    area="mor",
    text="At equal tokens two recursions take 19 % less training time",
    source=f"{_PAPER}, section 3.1",
    expected=AtMost(0.81),
    cost=90,
    kind="measured",
    remark=_CONDITIONS,
)
def training_time(
    widths: Sequence[int] = (64, 128, 256), batch: int = 8, length: int = 256, rounds: int = 5
) -> list[Measurement]:
    found = []
    for width in widths:
        routed, plain = (_step(name, width, batch, length)[1] for name in ("mor-2", "vanilla"))
        ratio = time_ratio(routed, plain, rounds)
        conditions = f"seconds of a step, MoR-2 over plain, 14 deep, width {width}, {batch} × {length} bytes, in turns"
        found.append(Measurement(ratio.value, conditions, ratio.interval))
    return found


@claim(
    id="mor-training-memory",
    area="mor",
    text="At equal tokens two recursions take 25 % less peak memory",
    source=f"{_PAPER}, section 3.1",
    expected=AtMost(0.75),
    cost=70,
    kind="measured",
    remark=_CONDITIONS,
)
def training_memory(widths: Sequence[int] = (64, 128, 256), batch: int = 8, length: int = 256) -> list[Measurement]:
    found = []
    for width in widths:
        routed, plain = (_peak_bytes(name, width, batch, length) for name in ("mor-2", "vanilla"))
        conditions = (
            f"peak bytes of a step with all states, MoR-2 over plain, 14 deep, width {width}, {batch} × {length}"
        )
        found.append(Measurement(routed / plain, f"{conditions} bytes of text"))
    return found


def _peak_bytes(name: str, width: int, batch: int, length: int) -> float:
    """Of a second step: weights, Adam's two moments, and by the allocator's records what a step adds to them."""
    model, train = _step(name, width, batch, length)
    train()
    with allocator_peak(torch.device("cpu")) as peak:
        train()
    assert peak.bytes is not None, "this torch keeps records of its allocations"
    return peak.bytes + 3 * sum(weight.numel() * weight.element_size() for weight in model.parameters())


@claim(
    id="mor-throughput",
    area="mor",
    text="With four recursions and the largest batch decoding is 2.06 times as fast as the plain model",
    source=f"{_PAPER}, figure 4a",
    expected=AtLeast(2.06),
    cost=300,
    kind="measured",
    remark=f"{_CONDITIONS}; the paper leaves out the caches' writes, the embedding and the first block, here all count",
)
def throughput(width: int = 128, batch: int = 32, length: int = 128) -> list[Measurement]:
    records = mor_decoding.decoding_records(mor.Experiment(width=width).config, batch, length)
    rates = {(record["model"], record["kind"]): record["tokens_per_second"] for record in records}
    batches = {(record["model"], record["kind"]): record["batch"] for record in records}
    return [
        Measurement(
            rates["mor-4", kind] / rates["vanilla", "equal"],
            f"tokens a second, MoR-4 at batch {batches['mor-4', kind]} over plain at batch {batch}, width {width}, "
            f"{length} tokens, every cost counted, in turns",
        )
        for kind in ("largest", "equal")
    ]


@claim(
    id="mor-quality",
    area="mor",
    text="At equal FLOPs a Mixture-of-Recursions of two beats the plain model",
    source=f"{_PAPER}, tables 3 and 9",
    expected=AtLeast(0.0),
    cost=1200,
    kind="measured",
    remark="by the paper small models (135 M) lose and larger ones (360 M) win while the budget is small for them; on "
    "the envelope of all sizes the plain model wins",
)
def quality(
    widths: Sequence[int] = (32, 64, 128), tokens: float = 3e5, length: int = 256, batch: int = 16
) -> list[Measurement]:
    found = []
    for width in widths:
        experiment = mor.Experiment(width=width, tokens=tokens, length=length, batch=batch)
        plain = mor.train(mor.Trial("vanilla", "tokens", 0), experiment)["bits_per_byte"]
        routed = mor.train(mor.Trial("mor-2", "flops", 0), experiment)["bits_per_byte"]
        conditions = f"bits per byte of the plain model less those of MoR-2 at its FLOPs, 14 deep, width {width}"
        found.append(Measurement(plain - routed, f"{conditions}, {tokens:g} bytes of text read by the plain one"))
    return found
