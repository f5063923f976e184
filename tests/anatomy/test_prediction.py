"""Memory predicted from shapes against what the allocator recorded: every mixer, and everything that changes a step."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from verim.anatomy import Ceilings, Memory, Workload, adamw, check_fits, nearest, predict_memory, predict_step, record
from verim.anatomy.workload import OptimiserOf, model_config
from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import FEED_FORWARDS, LayerConfig
from verim.nn.mixers import MIXERS, AttentionConfig

CEILINGS = Ceilings("cpu", 1, {"float32": 1e15}, ((2**14, 1e15), (2**26, 1e15)), 1e-6)
ONE_BY_ONE = ("rnn", "gru")  # torch walks over their positions in Python's sight: thousands of ops
LARGER = Workload(batch=4, length=64)
SMALL = Workload(batch=4, length=16)


def measured(config: LanguageModelConfig, workload: Workload, optimiser: OptimiserOf) -> Memory:
    """Of a real step, with the allocator's records."""
    model = LanguageModel(config)
    workload.prepare(model)
    steps = optimiser(model)
    with record(model, ceilings=CEILINGS) as recording:
        for _ in range(5):
            workload.step(model, steps, workload.draw(model))
    return recording.result.memory


def agree(config: LanguageModelConfig, workload: Workload, optimiser: OptimiserOf = adamw) -> None:
    predicted, found = predict_memory(config, workload, optimiser), measured(config, workload, optimiser)
    assert found.allocator_peak_bytes is not None
    assert predicted.peak_bytes == pytest.approx(found.allocator_peak_bytes, rel=0.05)
    assert found.peak_bytes == pytest.approx(found.allocator_peak_bytes, rel=0.05)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in ONE_BY_ONE])
def test_every_mixer(mixer: str) -> None:
    agree(model_config(mixer, 64), LARGER)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ONE_BY_ONE)
def test_mixers_that_torch_walks_through(mixer: str) -> None:
    agree(model_config(mixer, 64), SMALL)


@pytest.fixture
def known_gap(request: pytest.FixtureRequest) -> None:
    """oneDNN's LSTM keeps less in bfloat16 than its shapes say: predicted 11 % too high."""
    name = request.node.callspec.id
    if name == "bfloat16-lstm":
        request.applymarker(pytest.mark.xfail(strict=True, reason="the workspace of oneDNN's bfloat16 LSTM"))


@pytest.mark.slow
@pytest.mark.usefixtures("known_gap")
@pytest.mark.parametrize("mixer", ["attention", "mamba2", "rwkv7", "lstm"])
@pytest.mark.parametrize(
    "workload",
    [
        Workload(8, 64, checkpointing=True),
        Workload(8, 64, accumulation=4),
        Workload(8, 64, "bfloat16"),
        Workload(8, 64, "bfloat16", checkpointing=True, accumulation=2, clip=0),
    ],
    ids=["checkpointing", "accumulation", "bfloat16", "all"],
)
def test_every_way_of_a_step(mixer: str, workload: Workload) -> None:
    agree(model_config(mixer, 128), workload)


def feed_forward(kind: str) -> LayerConfig:
    options = {"experts": {"experts": 4, "hidden": 64}, "swiglu": {"hidden": 128}, "gelu": {"hidden": 128}}.get(
        kind, {}
    )
    built: LayerConfig = FEED_FORWARDS[kind](**options)
    return built


@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_every_feed_forward_layer(kind: str) -> None:
    block = BlockConfig(AttentionConfig(heads=4), feed_forward(kind))
    agree(LanguageModelConfig((block,), 64, 2), LARGER)


OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw-by-one": lambda model: torch.optim.AdamW(model.parameters(), foreach=False),
    "adamw-together": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters()),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser(name: str) -> None:
    wide = LanguageModelConfig(model_config("attention", 64).pattern, 64, 1, vocab=2048)  # the weights weigh most
    agree(wide, Workload(2, 16), OPTIMISERS[name])


def test_activations_grow_forward_and_shrink_backward() -> None:
    memory = predict_memory(model_config("attention", 64), LARGER)
    held = memory.timeline.bytes["activations"]
    highest = held.index(max(held))
    assert held[0] == held[-1] == 0
    assert all(held[i] <= held[i + 1] for i in range(highest))
    assert all(held[i] >= held[i + 1] for i in range(highest, len(held) - 1))
    by_module = {module.name: module for module in memory.modules}
    assert by_module["head"].parameters == 256 * 64 * 4 == by_module["head"].gradients
    assert by_module["head"].optimiser == pytest.approx(2 * 256 * 64 * 4, abs=8)  # two moments, a step
    assert by_module["blocks.0.feed_forward"].activations > 0


def test_predicting_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    predict_memory(model_config("attention", 32), SMALL)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_is_not_ours_and_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        nn.functional.cross_entropy(model(torch.rand(16, 3, 8, 8)), torch.randint(4, (16,))).backward()
        optimiser.step()
        optimiser.zero_grad()

    predicted = predict_step(model, step)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    optimiser = adamw(model)
    with record(model, ceilings=CEILINGS) as recording:
        for _ in range(5):
            step(model, optimiser)
    assert predicted.peak_bytes == pytest.approx(recording.result.memory.allocator_peak_bytes, rel=0.05)


def test_a_step_that_depends_on_numbers_says_so() -> None:
    def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        y = model(torch.rand(4, 8))
        y[y > 0].sum().backward()

    with pytest.raises(InputError, match="depends on numbers that are not computed"):
        predict_step(nn.Linear(8, 8), step)


def test_a_step_too_large_is_refused_with_three_that_fit() -> None:
    config, workload = model_config("attention", 64), Workload(16, 64)
    whole = predict_memory(config, workload).peak_bytes
    with pytest.raises(InputError, match=r"activations .* these fit: accumulation \d+ .*; checkpointing .*; "):
        check_fits(config, workload, 0.7 * whole)
    found = nearest(config, workload, 0.7 * whole)
    assert len(found) == 3
    assert all(proposal.peak_bytes <= 0.7 * whole for proposal in found)
    assert check_fits(config, found[0].workload, 0.7 * whole).peak_bytes == found[0].peak_bytes


def test_weights_that_never_fit_are_told() -> None:
    with pytest.raises(InputError, match="choose a smaller width"):
        check_fits(model_config("attention", 64), Workload(2, 4), 1e5)


@pytest.mark.parametrize(
    "options",
    [{"batch": 0}, {"batch": 6, "accumulation": 4}, {"precision": "float8"}, {"clip": -1.0}],
    ids=["batch", "accumulation", "precision", "clip"],
)
def test_workloads_that_make_no_sense(options: dict[str, object]) -> None:
    name = "accumulation" if "accumulation" in options else next(iter(options))
    with pytest.raises(InputError, match=name):
        Workload(**options)  # type: ignore[arg-type]


def test_unknown_models_are_told_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"transformer, .* attention, mamba2"):
        model_config("transfromer", 64)
