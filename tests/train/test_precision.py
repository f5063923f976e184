"""Halves: they learn as float32 does, overflow costs a step and not the run, and tiny updates are not lost."""

import json

import pytest
import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import SwiGLUConfig
from verim.nn.mixers import AttentionConfig, MambaConfig
from verim.train import AdamWConfig
from verim.train.optimisers import OPTIMISERS, clipped_step, gradient_norm
from verim.train.precision import KINDS, MasterWeights, Precision


def language_model(mixer: str) -> LanguageModel:
    torch.manual_seed(0)
    layer = AttentionConfig(heads=2) if mixer == "attention" else MambaConfig(state=4)
    return LanguageModel(LanguageModelConfig((BlockConfig(layer, SwiGLUConfig(40)),), 32, depth=2, vocab=32))


def curve(precision: Precision, mixer: str, steps: int = 25) -> list[float]:
    model = language_model(mixer)
    optimiser, scaler = precision.build(AdamWConfig(0.02), model), precision.scaler("cpu")
    losses = []
    for step in range(steps):
        start = torch.randint(0, 8, (4, 1), generator=torch.Generator().manual_seed(step))
        tokens = (start + 3 * torch.arange(25)) % 32
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"]
        with precision.autocast("cpu"):
            logits, _ = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        clipped_step(optimiser, gradient_norm(model.parameters()), 1.0, scaler)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("mixer", ["attention", "mamba"])
def test_curves_agree_with_float32(mixer: str) -> None:
    """Within 2 % of the first loss at every step, for each kind."""
    exact = curve(Precision(), mixer)
    assert exact[-1] < 0.5 * exact[0]
    for kind in KINDS[1:]:
        losses = curve(Precision(kind), mixer)
        assert losses != exact, kind
        assert max(abs(one - other) for one, other in zip(losses, exact, strict=True)) < 0.02 * exact[0], kind


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_overflow_halves_the_scale_and_moves_nothing(name: str) -> None:
    precision = Precision("float16", initial_scale=1024.0, growth_interval=2)
    model = nn.Linear(64, 64)
    optimiser, scaler = OPTIMISERS[name](0.01).build(model), precision.scaler("cpu")

    def step(size: float) -> Tensor:
        optimiser.zero_grad()
        with precision.autocast("cpu"):
            loss = (model(torch.full((1, 64), size)) ** 2).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        norm = gradient_norm(model.parameters())
        clipped_step(optimiser, norm, 1.0, scaler)
        scaler.update()
        return norm

    before = model.weight.detach().clone()
    assert not step(6e4).isfinite()
    assert scaler.get_scale() == 512.0 and torch.equal(model.weight, before)
    step(1.0)
    assert not torch.equal(model.weight, before) and model.weight.isfinite().all()
    step(1.0)
    assert scaler.get_scale() == 1024.0  # grown after two steps without overflow


def test_the_scaler_goes_on_where_it_stopped() -> None:
    scaler = Precision("float16", initial_scale=64.0, growth_interval=3).scaler("cpu")
    state = scaler.state_dict() | {"scale": 8.0, "_growth_tracker": 2}
    other = Precision("float16").scaler("cpu")
    other.load_state_dict(json.loads(json.dumps(state)))
    assert other.get_scale() == 8.0 and other.state_dict() == state


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float16"])
def test_elsewhere_the_scaler_does_nothing(kind: str) -> None:
    scaler = Precision(kind).scaler("cpu")  # type: ignore[arg-type]
    assert scaler.scale(torch.tensor(3.0)).item() == 3.0 and scaler.state_dict() == {}


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adamw"])
def test_master_weights_keep_what_bfloat16_loses(name: str) -> None:
    """100 updates of 1e-4 of the weight move it by a hundredth; in bfloat16 alone it stays where it is."""

    def moved(masters: bool) -> float:
        model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
        nn.init.ones_(model.weight)
        rate = 1e-3 if name == "adagrad" else 1e-4
        more = {} if name == "adagrad" else {"weight_decay": 0.0}
        optimiser = OPTIMISERS[name](rate, rates="plain", **more).build(model)
        optimiser = MasterWeights(optimiser) if masters else optimiser
        for _ in range(100):
            model.weight.grad = torch.ones_like(model.weight)
            optimiser.step()
        assert model.weight.dtype is torch.bfloat16
        return 1 - model.weight.item()

    assert moved(masters=False) == 0.0
    assert moved(masters=True) == pytest.approx(0.0186 if name == "adagrad" else 0.01, abs=0.004)


def test_master_weights_are_the_optimiser_in_float32() -> None:
    """The masters move exactly as the same optimiser moves float32 weights by the same gradients."""
    exact, model = nn.Linear(70, 64), nn.Linear(70, 64)
    model.to(torch.bfloat16)
    with torch.no_grad():
        for one, other in zip(exact.parameters(), model.parameters(), strict=True):
            one.copy_(other)
    for name, kind in OPTIMISERS.items():
        plain, master = kind(0.01).build(exact), MasterWeights(kind(0.01).build(model))
        for step in range(3):
            for one, other in zip(exact.parameters(), model.parameters(), strict=True):
                other.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
                one.grad = 0.5 * other.grad.float()
            plain.step()
            master.step(gradient_scale=0.5)
        for one, other in zip(exact.parameters(), model.parameters(), strict=True):
            assert torch.equal(master.state[other]["master"], one), name
            assert torch.equal(other, one.bfloat16()), name
            with torch.no_grad():
                one.copy_(other)


def test_groups_changed_from_outside_are_followed() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    optimiser = Precision("bfloat16_weights").build(AdamWConfig(0.1, rates="plain"), model)
    before = [weight.detach().clone() for weight in model.parameters()]
    (group,) = optimiser.param_groups
    group["params"], group["lr"] = group["params"][:1], 1.0
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    assert (before[0] - model[0].weight).abs().min() > 0.5 and torch.equal(before[1], model[1].weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "float8"}, "precision: got 'float8', expected one of float32, bfloat16"),
        ({"initial_scale": 0.0}, "initial_scale: got 0.0"),
        ({"growth_interval": 0}, "growth_interval: got 0"),
    ],
)
def test_impossible_fields_are_named(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Precision(**fields)
