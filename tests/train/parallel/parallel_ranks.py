"""One rank of the checks of `verim.train.parallel`, a process of its own: see test_parallel.py.

    python parallel_ranks.py RANK WORLD FOLDER [WORDS]

WORDS: those checks alone whose names have one of them. The processes meet over a file in FOLDER. Each runs the `CHECKS`
for WORLD ranks in order and writes to FOLDER/RANK.json what came out: null, or a traceback, after which it leaves (the
others then fail too, at once, instead of waiting).
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from verim.errors import InputError
from verim.models import LanguageModel, LanguageModelConfig
from verim.models.config import BlockConfig
from verim.nn import (
    GELUConfig,
    MixtureOfExpertsConfig,
    RWKV4ChannelMixConfig,
    RWKV7ChannelMixConfig,
    SwiGLUConfig,
    auxiliary_losses,
)
from verim.nn.mixers import (
    AttentionConfig,
    GRUConfig,
    LSTMConfig,
    Mamba2Config,
    MambaConfig,
    MinGRUConfig,
    MinLSTMConfig,
    RNNConfig,
    RWKV4Config,
    RWKV7Config,
    S4DConfig,
)
from verim.ops import cross_entropy
from verim.train.optimisers import AdamWConfig
from verim.train.parallel import Parallel, ParallelConfig, Traffic, parallelize
from verim.train.parallel.formulas import held, memory, traffic
from verim.train.parallel.traffic import Kind

CHECKS: dict[int, dict[str, Callable[[], None]]] = {2: {}, 4: {}}
WIDTH, VOCAB, ROWS, LENGTH = 16, 32, 8, 12

# auxiliary losses are means over a rank's rows, not over its targets, which are uneven here
EXPERTS = MixtureOfExpertsConfig(experts=4, hidden=8, shared=1, balance=0.0, z=0.0)
HYBRID = (
    BlockConfig(AttentionConfig(heads=4, bias=True, out_bias=True), SwiGLUConfig(hidden=24, bias=True)),
    BlockConfig(AttentionConfig(heads=8, kv_heads=4, head_dim=4, window=5), EXPERTS),
    BlockConfig(MambaConfig(state=4, bias=True), GELUConfig(hidden=24, bias=True)),
    BlockConfig(Mamba2Config(state=4, head_dim=8, bias=True), SwiGLUConfig(hidden=24)),
    BlockConfig(Mamba2Config(state=4, head_dim=4, groups=4, gate_first=False), None),
    BlockConfig(RWKV4Config(inner=20), RWKV4ChannelMixConfig()),
    BlockConfig(RWKV7Config(head_dim=4), RWKV7ChannelMixConfig()),
    BlockConfig(MinGRUConfig(kernel=3), None),
    BlockConfig(MinLSTMConfig(expand=1.5), None),
    BlockConfig(S4DConfig(state=4), None),
    BlockConfig(RNNConfig(), None),
    BlockConfig(GRUConfig(), None),
    BlockConfig(LSTMConfig(hidden=12), None),
)
"""Every kind of mixer and of feed-forward layer."""
PATTERNS = {
    "all": HYBRID,
    "some": (HYBRID[0], HYBRID[1], HYBRID[2], HYBRID[6], HYBRID[12]),
    "no experts": (HYBRID[0], HYBRID[2], HYBRID[6], HYBRID[12]),
}


def model_of(*pattern: BlockConfig, depth: int = 0, **fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(pattern, WIDTH, depth or len(pattern), VOCAB, **fields))
    nn.init.normal_(model.head.weight, std=WIDTH**-0.5)  # one of zeros hides what happens behind it in the first step
    return model


class Guessing:
    """The next token of random sequences; rows have different numbers of targets."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(step)
        tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=g)
        targets = tokens[:, 1:] // 2 + tokens[:, :-1] // 2
        for row in range(ROWS):
            targets[row, : row % 4] = -100
        return tokens[:, :-1], targets

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        with auxiliary_losses() as others:
            logits, _ = model(batch[0])
            loss = cross_entropy(logits, batch[1])
        return sum(others, loss)

    def weight(self, batch: tuple[Tensor, ...]) -> float:
        return float((batch[1] != -100).sum())


TASK = Guessing()


def optimiser_of(model: nn.Module) -> torch.optim.Optimizer:
    """A small eps would make signs of gradients that are nearly zero, a large rate send tokens to other experts."""
    return AdamWConfig(0.003, eps=1e-3, rates="plain").build(model)


CLIP = 0.5


def train(parallel: Parallel, steps: int, parts: int = 1) -> tuple[list[float], list[float]]:
    """Losses and gradient norms."""
    optimiser = optimiser_of(parallel.module)
    parallel.prepare(optimiser)
    losses, norms = [], []
    for step in range(steps):
        batch = parallel.share(TASK.batch(step))
        pieces = zip(*(tensor.chunk(parts) for tensor in batch), strict=True)
        losses.append(parallel.backward(TASK, *pieces).item())
        norms.append(parallel.clip(CLIP).item())
        optimiser.step()
        optimiser.zero_grad()
    return losses, norms


REFERENCES: dict[Any, Any] = {}


def reference(name: str, model: Callable[[], LanguageModel], steps: int) -> Any:
    """Losses, norms and weights of one rank, computed on rank 0 for all."""
    if name not in REFERENCES:
        found: list[Any] = [None]
        if distributed.get_rank() == 0:
            alone = model()
            losses, norms = [], []
            optimiser = optimiser_of(alone)
            for step in range(steps):
                loss = TASK.loss(alone, TASK.batch(step))
                loss.backward()
                losses.append(loss.item())
                norms.append(nn.utils.clip_grad_norm_(alone.parameters(), CLIP).item())
                optimiser.step()
                optimiser.zero_grad()
            found = [(losses, norms, alone.state_dict())]
        distributed.broadcast_object_list(found)
        REFERENCES[name] = found[0]
    return REFERENCES[name]


def near(got: list[float], expected: list[float], tolerance: float, what: str) -> None:
    for step, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert abs(one - other) <= tolerance * abs(other), f"{what} of step {step}: {one}, expected {other}"


def check(name: str, ranks: int) -> Callable[[Callable[[], None]], None]:
    def register(function: Callable[[], None]) -> None:
        CHECKS[ranks][name] = function

    return register


def same_training(blocks: str, config: ParallelConfig, parts: int = 1, steps: int = 20) -> None:
    pattern = PATTERNS[blocks]
    losses, norms, weights = reference(blocks, lambda: model_of(*pattern), steps)
    parallel = parallelize(model_of(*pattern), config, ROWS, LENGTH)
    got = train(parallel, steps, parts)
    near(got[0], losses, 1e-4, "loss")
    near(got[1], norms, 1e-2, "gradient norm")
    for name, weight in parallel.module.named_parameters():
        whole = parallel.gather(name, weight)
        assert whole.shape == weights[name].shape, name
        error = (whole - weights[name]).abs().max().item()
        assert error < 3e-3, f"{name}: {error}"
        assert torch.equal(local(parallel.scatter(name, whole)), local(weight)), name
        held = parallel.held(name, weight)
        assert tuple(held.shape) == tuple(whole.shape), name


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


for ranks, pattern, configs in (
    (
        2,
        "some",
        {
            "data": ParallelConfig(data=2),
            "zero 1": ParallelConfig(shard=2, zero=1),
            "zero 2": ParallelConfig(shard=2, zero=2),
            "zero 3": ParallelConfig(shard=2),
            "tensor": ParallelConfig(tensor=2),
            "tensor by positions": ParallelConfig(tensor=2, sequence_parallel=True),
            "context": ParallelConfig(context=2),
            "expert": ParallelConfig(expert=2),
        },
    ),
    (
        4,
        "all",
        {
            "data": ParallelConfig(data=4),
            "zero 1": ParallelConfig(shard=4, zero=1),
            "zero 3": ParallelConfig(shard=4, activation_checkpointing="selective"),
            "tensor": ParallelConfig(tensor=4),
            "tensor by positions": ParallelConfig(tensor=4, sequence_parallel=True, activation_checkpointing="full"),
        },
    ),
    (
        4,
        "some",
        {
            "data and tensor": ParallelConfig(data=2, tensor=2),
            "shard and tensor": ParallelConfig(shard=2, tensor=2, sequence_parallel=True),
            "zero 2 and tensor": ParallelConfig(shard=2, tensor=2, zero=2, activation_checkpointing="full"),
            "zero 1 and tensor": ParallelConfig(shard=2, tensor=2, zero=1),
            "data and shard": ParallelConfig(data=2, shard=2, checkpoint_every=2, activation_checkpointing="selective"),
            "data and zero 1": ParallelConfig(data=2, shard=2, zero=1),
            "data and context": ParallelConfig(data=2, context=2),
            "context and tensor": ParallelConfig(context=2, tensor=2),
            "data and expert": ParallelConfig(data=2, expert=2),
            "shard and expert": ParallelConfig(shard=2, expert=2),
        },
    ),
):
    for name, config in configs.items():
        check(f"{name}: {pattern} layers train as on one rank", ranks)(partial(same_training, pattern, config))
check("data: accumulated as on one rank", 2)(partial(same_training, "some", ParallelConfig(data=2), parts=2))
check("zero 3: accumulated as on one rank", 2)(partial(same_training, "some", ParallelConfig(shard=2), parts=2))


def sent_and_kept(config: ParallelConfig) -> None:
    """The third step: DDP arranges its buckets between the first two."""
    whole = model_of(*PATTERNS["all"])
    parallel = parallelize(model_of(*PATTERNS["all"]), config, ROWS, LENGTH)
    optimiser = optimiser_of(parallel.module)
    parallel.prepare(optimiser)
    batch = parallel.share(TASK.batch(0))
    for _ in range(2):
        parallel.backward(TASK, batch)
        optimiser.step()
        optimiser.zero_grad()
    with Traffic() as measured:
        parallel.backward(TASK, batch)
        place = 0 if parallel.mesh is None else parallel.mesh.place("shard")
        got = held(parallel.module, optimiser)
        expected = memory(whole, config, place)
        assert (got.weights, got.gradients, got.state) == (expected.weights, expected.gradients, expected.state)
        optimiser.step()
    sent = traffic(whole, config, ROWS, LENGTH)
    for kind in get_args(Kind):
        got_bytes, formula = measured.volume(kind, least=16), sent.get(kind, 0.0)
        assert got_bytes == formula, f"{kind}: {got_bytes} bytes sent, {formula} by formula"


for ranks, configs in {
    2: {"data": ParallelConfig(data=2), "zero 1": ParallelConfig(shard=2, zero=1)}
    | {f"zero {zero}": ParallelConfig(shard=2, zero=zero) for zero in (2, 3)}
    | {"tensor": ParallelConfig(tensor=2), "by positions": ParallelConfig(tensor=2, sequence_parallel=True)},
    4: {"data and shard": ParallelConfig(data=2, shard=2), "shard and tensor": ParallelConfig(shard=2, tensor=2)},
}.items():
    for name, config in configs.items():
        check(f"{name}: bytes sent and kept are those of the formula", ranks)(partial(sent_and_kept, config))


@check("zero 3: what is gathered at once is that of the formula", 2)
def gathered() -> None:
    for zero in (2, 3):
        config = ParallelConfig(shard=2, zero=zero)
        whole, model = model_of(*PATTERNS["some"]), model_of(*PATTERNS["some"])
        parallel = parallelize(model, config, ROWS, LENGTH)
        most = 0

        def look(block: nn.Module, *_: Any, model: nn.Module = model) -> None:
            nonlocal most
            there = [weight for weight in model.parameters() if not isinstance(weight, DTensor)]
            most = max(most, sum(4 * weight.numel() for weight in there))

        for block in model.blocks:
            block.mixer.register_forward_hook(look)
        parallel.backward(TASK, parallel.share(TASK.batch(0)))
        assert most == memory(whole, config).gathered


@check("the balance loss is that of the whole batch", 2)
def balance() -> None:
    block = BlockConfig(AttentionConfig(heads=4), MixtureOfExpertsConfig(experts=4, hidden=8, balance=0.1))
    expected = TASK.loss(model_of(block), TASK.batch(0)).item()
    for config in (ParallelConfig(data=2), ParallelConfig(shard=2), ParallelConfig(expert=2)):
        parallel = parallelize(model_of(block), config, ROWS, LENGTH)
        loss = parallel.backward(TASK, parallel.share(TASK.batch(0)))
        near([loss.item()], [expected], 1e-5, "loss")


def same_losses(config: ParallelConfig, which: str, steps: int = 20) -> None:
    """Of stages, whose weights have names of their own."""
    losses, norms, _ = reference(which, lambda: model_of(*PATTERNS[which]), steps)
    got = train(parallelize(model_of(*PATTERNS[which]), config, ROWS, LENGTH), steps)
    near(got[0], losses, 1e-4, "loss")
    near(got[1], norms, 1e-2, "gradient norm")


check("stages train as one rank", 2)(partial(same_losses, ParallelConfig(pipeline=2, micro_batches=4), "some"))
check("stages and data train as one rank", 4)(
    partial(same_losses, ParallelConfig(data=2, pipeline=2, micro_batches=2, pipeline_schedule="gpipe"), "no experts")
)


@check("evaluation has the weights in place", 2)
def evaluation() -> None:
    expected = TASK.loss(model_of(*PATTERNS["some"]), TASK.batch(3)).item()
    for config in (ParallelConfig(shard=2), ParallelConfig(data=2), ParallelConfig(tensor=2)):
        parallel = parallelize(model_of(*PATTERNS["some"]), config, ROWS, LENGTH)
        loss = parallel.run(lambda model: TASK.loss(model, TASK.batch(3)))
        near([loss.item()], [expected], 1e-5, "loss")
        parallel.backward(TASK, parallel.share(TASK.batch(0)))


@check("rows without targets are refused on every rank", 2)
def no_targets() -> None:
    parallel = parallelize(model_of(*PATTERNS["some"]), ParallelConfig(data=2), ROWS, LENGTH)
    tokens, targets = TASK.batch(0)
    targets[ROWS // 2 :] = -100
    with pytest.raises(InputError, match="batch: some rank's rows have no targets"):
        parallel.backward(TASK, parallel.share((tokens, targets)))


@check("what does not fit is refused before anything changes", 2)
def refused() -> None:
    model = model_of(*PATTERNS["some"])
    before = [weight.shape for weight in model.parameters()]
    for config, message in (
        (ParallelConfig(data=4), "data 4: 4 ranks, but 2 were given"),
        (ParallelConfig(shard=2, offload=True), "offload: got True on the CPU"),
        (ParallelConfig(pipeline=2, micro_batches=3), "micro_batches: got 3"),
    ):
        with pytest.raises(InputError, match=message):
            parallelize(model, config, ROWS, LENGTH)
        assert [weight.shape for weight in model.parameters()] == before
    parallel = parallelize(model, ParallelConfig(shard=2, zero=1), ROWS, LENGTH)
    with pytest.raises(InputError, match="batch: got 3 sequences for 2 ranks"):
        parallel.share(tuple(tensor[:3] for tensor in TASK.batch(0)))
    optimiser = optimiser_of(parallel.module)
    parallel.backward(TASK, parallel.share(TASK.batch(0)))
    optimiser.step()
    with pytest.raises(InputError, match="zero 1: the optimiser has made steps already"):
        parallel.prepare(optimiser)


def main() -> None:
    rank, world, folder, wanted = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=8),  # the first rank may have to compile kernels
    )
    results: dict[str, str | None] = {}
    for name, function in CHECKS[world].items():
        if wanted and not any(word in name for word in wanted):
            continue
        began = time.monotonic()
        try:
            function()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
            print(rank, name, results[name], flush=True)
        if rank == 0:
            print(f"{time.monotonic() - began:6.1f} s  {name}", flush=True)
        (folder / f"{rank}.json").write_text(json.dumps(results))
        if results[name]:
            break
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
