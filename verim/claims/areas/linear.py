"""Linear models: time O(N), a state of constant size, and the same results in parallel and one token at a time."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from verim.anatomy.allocations import AllocatorPeak, allocator_peak
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost, Exactly
from verim.claims.timing import growth, median_seconds, time_ratio
from verim.generate import Engine, Sampling
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import Layer, LayerConfig, RWKV4ChannelMixConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig, Mamba2Config, MambaConfig, RWKV4Config, RWKV7Config, S4DConfig

_MAMBA = "Gu and Dao 2023, arXiv 2312.00752"
_RWKV = "Peng et al. 2023, arXiv 2305.13048"
_WIDTH = 64
_WATCHED_TOKENS = 500  # the allocator's records of more would themselves fill memory
LINEAR: dict[str, LayerConfig] = {
    "Mamba": MambaConfig(),
    "Mamba-2": Mamba2Config(state=32, head_dim=16),
    "RWKV-4": RWKV4Config(),
    "RWKV-7": RWKV7Config(head_dim=16, decay_rank=8, rate_rank=8, gate_rank=16),
    "S4D": S4DConfig(),
}
ATTENTION = AttentionConfig(heads=4)


def _model(mixer: LayerConfig, context: int = 0) -> LanguageModel:
    """Two blocks of the mixer alone, with a head that says something."""
    model = LanguageModel(LanguageModelConfig((BlockConfig(mixer),), _WIDTH, 2, context=context)).eval()
    torch.nn.init.normal_(model.head.weight, std=_WIDTH**-0.5)
    return model


def _train(layer: Layer, x: Tensor) -> None:
    """Forward and backward."""
    layer(x)[0].sum().backward()


def _time_growth(mixer: LayerConfig, lengths: Sequence[int]) -> Measurement:
    """The exponent of a mixer's time, forward and backward."""
    layer = mixer.build(_WIDTH, 0, 1)
    runs = [partial(_train, layer, torch.randn(1, length, _WIDTH)) for length in lengths]
    found = growth(lengths, median_seconds(runs, rounds=5))
    conditions = (
        f"exponent of the median time, forward and backward of one mixer, N = {lengths[0]} … {lengths[-1]}, width "
        f"{_WIDTH}, float32"
    )
    return Measurement(found.exponent, conditions, found.interval)


@claim(
    id="linear-time-mamba",
    area="linear",
    text="Mamba trains in time O(N)",
    source=f"{_MAMBA}, section 3.3.2",
    expected=Exactly(1.0, tolerance=0.2),
    cost=5,
    kind="measured",
)
def time_of_mamba(lengths: Sequence[int] = (4096, 8192, 16384, 32768)) -> Measurement:
    return _time_growth(LINEAR["Mamba"], lengths)


@claim(
    id="linear-time-rwkv",
    area="linear",
    text="RWKV trains in time O(N)",
    source=f"{_RWKV}, table 1",
    expected=Exactly(1.0, tolerance=0.2),
    cost=3,
    kind="measured",
)
def time_of_rwkv(lengths: Sequence[int] = (4096, 8192, 16384, 32768)) -> Measurement:
    return _time_growth(LINEAR["RWKV-4"], lengths)


@claim(
    id="linear-beats-attention",
    area="linear",
    text="Mamba's scan is faster than tiled attention beyond 2048 tokens",
    source=f"{_MAMBA}, section 4.5 (one A100, 1024 channels)",
    expected=AtLeast(1.0),
    cost=5,
    kind="measured",
    remark="here whole mixers of one width, projections included, on this machine",
)
def beats_attention(lengths: Sequence[int] = (512, 2048, 8192)) -> list[Measurement]:
    mamba, attention = (config.build(_WIDTH, 0, 1) for config in (LINEAR["Mamba"], ATTENTION))
    found = []
    for length in lengths:
        x = torch.randn(1, length, _WIDTH)
        ratio = time_ratio(partial(_train, attention, x), partial(_train, mamba, x), rounds=5)
        conditions = f"time of attention over Mamba's, forward and backward of one mixer, N = {length}, width {_WIDTH}"
        found.append(Measurement(ratio.value, conditions, ratio.interval))
    return found


@claim(
    id="linear-state",
    area="linear",
    text="Mamba and RWKV decode from a state of O(1)",
    source=f"{_MAMBA}, section 1; {_RWKV}, table 1",
    expected=Exactly(1.0),
    cost=1,
    kind="measured",
)
def state(lengths: tuple[int, int] = (10, 1000)) -> Measurement:
    ratios = {}
    for name, mixer in LINEAR.items():
        model = _model(mixer)
        with torch.inference_mode():
            few, many = (model(torch.zeros(1, length, dtype=torch.long))[1].bytes() for length in lengths)
        ratios[name] = many / few
    return Measurement(ratios, f"bytes of the state after {lengths[1]} tokens over those after {lengths[0]}")


@claim(
    id="linear-state-attention",
    area="linear",
    text="Attention decodes from a state of O(N)",
    source=f"{_MAMBA}, section 1",
    expected=Exactly(100.0, relative=0.01),
    cost=0.3,
    kind="measured",
)
def state_of_attention(lengths: tuple[int, int] = (10, 1000)) -> Measurement:
    model = _model(ATTENTION, context=lengths[1])
    with torch.inference_mode():
        few, many = (model(torch.zeros(1, length, dtype=torch.long))[1].bytes() for length in lengths)
    return Measurement(many / few, f"bytes of the state after {lengths[1]} tokens over those after {lengths[0]}")


@claim(
    id="linear-decode-time",
    area="linear",
    text="A token takes as long after 4096 tokens as after 16",
    source=f"{_MAMBA}, section 1; {_RWKV}, section 3.4",
    expected=Exactly(1.0, tolerance=0.2),
    cost=0.5,
    kind="measured",
)
def decode_time(lengths: tuple[int, int] = (16, 4096), rounds: int = 15) -> list[Measurement]:
    found, token = [], torch.zeros(1, 1, dtype=torch.long)
    for name in ("Mamba", "RWKV-4"):
        model = _model(LINEAR[name])
        with torch.inference_mode():
            early, late = (model(torch.zeros(1, length, dtype=torch.long))[1] for length in lengths)
            ratio = time_ratio(partial(model, token, late), partial(model, token, early), rounds)
        conditions = f"time of a token after {lengths[1]} over that after {lengths[0]}, {name}, 2 blocks"
        found.append(Measurement(ratio.value, conditions, ratio.interval))
    return found


@torch.inference_mode()
def _parallel_against_recurrent(mixer: LayerConfig, length: int) -> float:
    """The largest difference of logits, relative to their size."""
    model = _model(mixer)
    tokens = torch.randint(256, (2, length))
    whole, _ = model(tokens)
    state, steps = None, []
    for place in range(length):
        logits, state = model(tokens[:, place : place + 1], state)
        steps.append(logits)
    return float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max())


@claim(
    id="linear-rwkv-both-ways",
    area="linear",
    text="RWKV trained in parallel and decoded as a recurrence is the same function",
    source=f"{_RWKV}, sections 3.3 and 3.4",
    expected=AtMost(1e-4),
    cost=1,
    kind="measured",
)
def rwkv_both_ways(length: int = 100) -> Measurement:
    errors = {name: _parallel_against_recurrent(LINEAR[name], length) for name in ("RWKV-4", "RWKV-7")}
    return Measurement(errors, f"largest relative difference of logits, {length} tokens at once or one by one, float32")


@claim(
    id="linear-ssm-both-ways",
    area="linear",
    text="A state-space model is a scan or convolution in training and a recurrence in decoding",
    source=f"{_MAMBA}, section 2, equations 2 and 3; Gu et al. 2022, arXiv 2111.00396, section 2.4",
    expected=AtMost(1e-4),
    cost=1,
    kind="measured",
)
def ssm_both_ways(length: int = 100) -> Measurement:
    errors = {name: _parallel_against_recurrent(LINEAR[name], length) for name in ("Mamba", "Mamba-2", "S4D")}
    return Measurement(errors, f"largest relative difference of logits, {length} tokens at once or one by one, float32")


@claim(
    id="linear-memory-flat",
    area="linear",
    text="Memory stays flat over 20 000 generated tokens",
    source=f"{_RWKV}, section 1 (constant memory in inference)",
    expected=Exactly(1.0, tolerance=0.01),
    cost=45,
    kind="measured",
)
def memory_flat(tokens: int = 20_000, watched: int = 50) -> list[Measurement]:
    found = []
    for name in ("Mamba", "RWKV-4"):
        engine = Engine(_model(LINEAR[name]))
        engine.add([1, 2, 3], Sampling(max_tokens=tokens))
        _draw(engine, 20 * watched)
        early = _draw(engine, watched)
        _draw(engine, tokens - 23 * watched)
        late = _draw(engine, watched)
        ratios = {what: late[what] / early[what] for what in early}
        found.append(
            Measurement(ratios, f"bytes after {tokens} tokens over those after {20 * watched}, {name}, one row")
        )
    return found


def _draw(engine: Engine, tokens: int) -> dict[str, int]:
    """Draws so many tokens: bytes of the states, and the most bytes that were allocated besides."""
    watched = allocator_peak(torch.device("cpu")) if tokens < _WATCHED_TOKENS else nullcontext(AllocatorPeak())
    with watched as peak:
        for _ in range(tokens):
            engine.step()
    return {"state": engine.state_bytes(), "allocated": peak.bytes or 1}


@torch.inference_mode()
def _generated_a_second(model: LanguageModel, rows: int, prompt: int, tokens: int) -> float:
    """Greedy tokens a second of all rows together, without the reading of the prompts."""
    state = None
    for piece in torch.randint(256, (rows, prompt)).split(max(1, 8192 // rows), dim=1):
        logits, state = model(piece, state, last=1)
    began = time.perf_counter()
    for _ in range(tokens):
        logits, state = model(logits[:, -1].argmax(-1, keepdim=True), state)
    return rows * tokens / (time.perf_counter() - began)


@claim(
    id="linear-five-times",
    area="linear",
    text="Mamba and RWKV generate 5 times as many tokens a second as a transformer of their size",
    source=f"{_MAMBA}, section 4.5 and appendix E.5 (prompt 2048, 128 generated, best batch)",
    expected=AtLeast(5.0),
    cost=90,
    kind="measured",
    remark="a gain of the batch, which the transformer's keys and values limit; reading prompts gains nothing",
)
def five_times(prompt: int = 2048, tokens: int = 32, megabytes: float = 128, most: int = 32) -> list[Measurement]:
    width, length = 256, prompt + tokens
    blocks: dict[str, tuple[BlockConfig, int]] = {
        "transformer": (BlockConfig(AttentionConfig(heads=4), SwiGLUConfig(688)), 6),
        "Mamba": (BlockConfig(MambaConfig()), 11),
        "RWKV-4": (BlockConfig(RWKV4Config(), RWKV4ChannelMixConfig()), 7),
    }
    rates: dict[str, dict[int, float]] = {}
    for name, (block, depth) in blocks.items():
        model = LanguageModel(LanguageModelConfig((block,), width, depth, context=length)).eval()
        _generated_a_second(model, 1, 16, 4)  # compiles
        rows = [1 << power for power in range(most.bit_length())]
        fitting = [count for count in rows if model.state_bytes(count, length) <= 1e6 * megabytes]
        rates[name] = {count: _generated_a_second(model, count, prompt, tokens) for count in {1, fitting[-1]}}
    best = {name: max(found.values()) for name, found in rates.items()}
    alone, together = (
        {name: found[name] / found["transformer"] for name in ("Mamba", "RWKV-4")}
        for found in ({name: rates[name][1] for name in rates}, best)
    )
    sizes = ", ".join(f"{name} {max(found)}" for name, found in rates.items())
    said = f"generated tokens a second over the transformer's, prompt {prompt}, {tokens} generated, 5 M weights"
    return [
        Measurement(together, f"{said}, each at its most rows with {megabytes:g} MB for states ({sizes})"),
        Measurement(alone, f"{said}, one row"),
    ]
