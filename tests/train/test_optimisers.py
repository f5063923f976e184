"""What holds for every optimiser of the registry; one that is not in FORMULAS fails here."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import MixtureOfExpertsConfig
from verim.nn.mixers import MIXERS, AttentionConfig
from verim.runtime.tensors import read_tensors, write_tensors
from verim.train import AdamWConfig
from verim.train.optimisers import OPTIMISERS, clipped_step, gradient_norm, restore_state, state_tensors, weight_groups
from verim.train.precision import MasterWeights

Formula = Callable[[Any, Tensor, list[Tensor]], Tensor]


def sgd(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    for g in gradients:
        w = w - config.learning_rate * config.weight_decay * w - config.learning_rate * g
    return w


def momentum(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    b = torch.zeros_like(w)
    for g in gradients:
        b = config.momentum * b + g
        w = w - config.learning_rate * config.weight_decay * w - config.learning_rate * b
    return w


def nesterov(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    b = torch.zeros_like(w)
    for g in gradients:
        b = config.momentum * b + g
        w = w - config.learning_rate * (config.weight_decay * w + g + config.momentum * b)
    return w


def adagrad(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    s = torch.zeros_like(w)
    for g in gradients:
        s = s + g * g
        w = w - config.learning_rate * (config.weight_decay * w + g / (s.sqrt() + config.eps))
    return w


def adadelta(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    s, d = torch.zeros_like(w), torch.zeros_like(w)
    for g in gradients:
        s = config.rho * s + (1 - config.rho) * g * g
        change = g * (d + config.eps).sqrt() / (s + config.eps).sqrt()
        d = config.rho * d + (1 - config.rho) * change * change
        w = w - config.learning_rate * (config.weight_decay * w + change)
    return w


def rmsprop(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    s = torch.zeros_like(w)
    for g in gradients:
        s = config.alpha * s + (1 - config.alpha) * g * g
        w = w - config.learning_rate * (config.weight_decay * w + g / (s.sqrt() + config.eps))
    return w


def adam(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    weight_decay = getattr(config, "weight_decay", 0.0)
    for t, g in enumerate(gradients, start=1):
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g * g
        change = (m / (1 - config.beta1**t)) / ((v / (1 - config.beta2**t)).sqrt() + config.eps)
        w = w - config.learning_rate * (weight_decay * w + change)
    return w


def lion(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    m = torch.zeros_like(w)
    for g in gradients:
        u = torch.sign(config.beta1 * m + (1 - config.beta1) * g)
        w = w - config.learning_rate * (u + config.weight_decay * w)
        m = config.beta2 * m + (1 - config.beta2) * g
    return w


def muon(config: Any, w: Tensor, gradients: list[Tensor]) -> Tensor:
    """By singular values: Newton-Schulz applies its polynomial to each of them."""
    b = torch.zeros_like(w)
    for g in gradients:
        b = config.momentum * b + (1 - config.momentum) * g
        u, s, vt = torch.linalg.svd((1 - config.momentum) * g + config.momentum * b, full_matrices=False)
        s = s / s.norm()
        for _ in range(config.iterations):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        ratio = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
        w = w - config.learning_rate * (config.weight_decay * w + ratio * (u * s) @ vt)
    return w


FORMULAS: dict[str, tuple[Formula, float]] = {  # and how near the weight's movement comes, relative
    "sgd": (sgd, 1e-5),
    "momentum": (momentum, 1e-5),
    "nesterov": (nesterov, 1e-5),
    "adagrad": (adagrad, 1e-5),
    "adadelta": (adadelta, 1e-4),
    "rmsprop": (rmsprop, 1e-5),
    "adam": (adam, 1e-5),
    "adamw": (adam, 1e-5),
    "adamw_8bit": (adam, 0.1),  # moments to a few percent
    "lion": (lion, 1e-5),
    "muon": (muon, 0.03),  # torch orthogonalises in bfloat16
}
FIELDS: dict[str, dict[str, Any]] = {"attention": {"heads": 2}, "rwkv7": {"head_dim": 8}, "mamba2": {"head_dim": 8}}
each_optimiser = pytest.mark.parametrize("name", OPTIMISERS)


class OneMatrix(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight.data = weight.clone()


def language_model(seed: int = 0, mixer: Any = None, tied: bool = False) -> LanguageModel:
    torch.manual_seed(seed)
    block = BlockConfig(mixer or AttentionConfig(heads=2), MixtureOfExpertsConfig(experts=4, hidden=16, shared=1))
    return LanguageModel(LanguageModelConfig((block,), 16, depth=1, vocab=257, tied=tied))


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 8, (2, 13), generator=generator)
    logits, _ = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def give_gradients(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * (1 - step / 40)
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(model, step)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_every_optimiser_has_its_formula() -> None:
    assert FORMULAS.keys() == OPTIMISERS.keys()


@each_optimiser
def test_a_weight_moves_as_the_paper_says(name: str) -> None:
    formula, tolerance = FORMULAS[name]
    fields = {field.name for field in dataclasses.fields(OPTIMISERS[name])}
    decay = {"weight_decay": 0.3} if "weight_decay" in fields else {}
    config = OPTIMISERS[name](0.01, rates="plain", **decay)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(80, 64, generator=generator)
    gradients = [torch.randn(80, 64, generator=generator) * 10.0 ** (step % 3 - 1) for step in range(6)]
    model = OneMatrix(weight)
    optimiser = config.build(model)
    for gradient in gradients:
        model.layer.weight.grad = gradient.clone()
        optimiser.step()
    moved = model.layer.weight.detach().double() - weight.double()
    expected = formula(config, weight.double(), [gradient.double() for gradient in gradients]) - weight.double()
    assert (moved - expected).norm() <= tolerance * expected.norm()
    assert (moved - expected).abs().max() <= 20 * tolerance * expected.abs().max()


@each_optimiser
def test_weight_decay_is_decoupled_and_acts_on_matrices_alone(name: str) -> None:
    """With a gradient of zero a matrix shrinks by lr · λ and nothing else moves, whatever the moments are."""
    if "weight_decay" not in {field.name for field in dataclasses.fields(OPTIMISERS[name])}:
        pytest.skip("has none")
    config = OPTIMISERS[name](0.1, rates="plain", weight_decay=0.5)
    model = nn.Sequential(nn.Linear(64, 64), nn.Embedding(4, 64), nn.LayerNorm(64))
    optimiser = config.build(model)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    for key, weight in model.named_parameters():
        expected = before[key] * (0.95 if key == "0.weight" else 1.0)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)
    model.zero_grad(set_to_none=True)
    optimiser.step()  # weights that have no gradient stay
    torch.testing.assert_close(model[0].weight.detach(), before["0.weight"] * 0.95, rtol=1e-6, atol=0)


@each_optimiser
def test_it_descends_on_a_quadratic(name: str) -> None:
    torch.manual_seed(0)
    target, curvature = torch.randn(64, 64), torch.linspace(0.5, 2, 64)
    model = OneMatrix(torch.zeros(64, 64))
    decay = {"weight_decay": 0.0} if "weight_decay" in {f.name for f in dataclasses.fields(OPTIMISERS[name])} else {}
    rate = {"adadelta": 1.0, "adagrad": 1.0, "muon": 0.1}.get(name, 0.02)
    optimiser = OPTIMISERS[name](rate, rates="plain", **decay).build(model)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = (curvature * (model.layer.weight - target) ** 2).sum() / 2
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < (0.5 if name == "adadelta" else 0.1) * losses[0]
    assert math.isfinite(losses[-1])


@each_optimiser
@pytest.mark.parametrize("masters", [False, True])
def test_stopped_and_restored_goes_on_with_the_same_bits(name: str, masters: bool, tmp_path: Path) -> None:
    def begin(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = language_model(seed)
        config = OPTIMISERS[name](0.01)
        return model, (MasterWeights(config.build(model.to(torch.bfloat16))) if masters else config.build(model))

    whole, optimiser = begin(0)
    expected = train(whole, optimiser, range(7))
    first, optimiser = begin(0)
    losses = train(first, optimiser, range(4))
    write_tensors(tmp_path / "state", state_tensors(first, optimiser))
    second, optimiser = begin(1)
    second.load_state_dict(first.state_dict())
    restore_state(second, optimiser, read_tensors(tmp_path / "state")[0])
    assert losses + train(second, optimiser, range(4, 7)) == expected
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@each_optimiser
def test_state_dicts_of_torch_restore_it_too(name: str) -> None:
    whole, first, second = (language_model() for _ in range(3))
    optimisers = [OPTIMISERS[name](0.01).build(model) for model in (whole, first, second)]
    train(whole, optimisers[0], range(5))
    train(first, optimisers[1], range(3))
    second.load_state_dict(first.state_dict())
    optimisers[2].load_state_dict(optimisers[1].state_dict())
    train(second, optimisers[2], range(3, 5))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@each_optimiser
def test_state_takes_the_bytes_that_are_declared(name: str) -> None:
    """Of a model with a large matrix, one part of which is frozen."""
    config, model = OPTIMISERS[name](0.01), language_model()
    model.embedding.requires_grad_(False)
    optimiser = config.build(model)
    train(model, optimiser, range(1))
    state = {key: value for key, value in state_tensors(model, optimiser).items() if not key.startswith("step.")}
    assert sum(value.numel() * value.element_size() for value in state.values()) == config.state_bytes(model)


@pytest.mark.parametrize("mixer", MIXERS)
def test_all_weights_of_every_mixer_learn_with_every_optimiser(mixer: str) -> None:
    for name, kind in OPTIMISERS.items():
        model = language_model(mixer=MIXERS[mixer](**FIELDS.get(mixer, {})))
        optimiser = kind(0.01).build(model)
        groups = [weight for group in optimiser.param_groups for weight in group["params"]]
        assert {id(weight) for weight in groups} == {id(weight) for weight in model.parameters()}
        assert len(groups) == len({id(weight) for weight in groups})
        assert all(group["base_rate"] > 0 for group in optimiser.param_groups)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        before = [weight.detach().clone() for weight in model.parameters()]
        optimiser.step()
        for (key, weight), old in zip(model.named_parameters(), before, strict=True):
            assert weight.isfinite().all() and not torch.equal(weight, old), f"{name}: {key}"


@each_optimiser
def test_clipping_is_the_same_however_it_is_done(name: str) -> None:
    """One step that is clipped and one that is not: moments remember which."""
    models = [language_model() for _ in range(2)]
    optimisers = [OPTIMISERS[name](0.01).build(model) for model in models]
    for share in (0.5, 20.0):
        for model in models:
            give_gradients(model)
        norm = gradient_norm(models[0].parameters())
        clip = share * norm.item()
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(models[1].parameters(), clip))
        clipped_step(optimisers[0], norm, clip)
        optimisers[1].step()
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each_optimiser
def test_a_gradient_that_is_sparse_is_refused_or_taken(name: str) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimiser = OPTIMISERS[name](0.1).build(table)
    table(torch.tensor([1])).sum().backward()
    if type(optimiser).__module__.startswith("torch"):
        return
    with pytest.raises(InputError, match=r"shape \(5, 3\) is sparse, expected a dense real one"):
        optimiser.step()


@each_optimiser
def test_impossible_fields_are_named(name: str) -> None:
    bad: dict[str, tuple[Any, ...]] = {"learning_rate": (0.0, -1.0, math.inf, math.nan), "rates": ("fast",)}
    bad |= dict.fromkeys(("weight_decay", "eps"), (-1e-9, math.inf, math.nan))
    bad |= dict.fromkeys(("momentum", "beta1", "beta2", "alpha", "rho"), (1.0, -0.1, math.nan))
    bad |= {"adam_learning_rate": (0.0, math.inf), "iterations": (0, 100)}
    for field in dataclasses.fields(OPTIMISERS[name]):
        if field.name == "nesterov":
            continue
        for value in bad[field.name]:
            with pytest.raises(InputError, match=f"^{field.name}: got {value}".replace("fast", "'fast'")):
                OPTIMISERS[name](**({"learning_rate": 0.1} | {field.name: value}))


@each_optimiser
def test_every_field_changes_what_is_built(name: str) -> None:
    def after(**changes: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = language_model()
        optimiser = OPTIMISERS[name](**({"learning_rate": 0.01} | changes)).build(model)
        train(model, optimiser, range(3))
        return [weight.detach() for weight in model.parameters()]

    plain = after()
    for field in dataclasses.fields(OPTIMISERS[name]):
        other: Any = {"rates": "plain", "nesterov": False, "iterations": 2, "eps": 0.1}.get(field.name, 0.25)
        changed = after(**{field.name: other})
        assert not all(torch.equal(one, two) for one, two in zip(plain, changed, strict=True)), field.name


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.01, 5.5492), (0.1, 3.0001), (0.5, 3.0), (1.0, 10.0), (1.01, 21.8411)]
)
def test_gradient_descent_on_a_parabola(rate: float, expected: float) -> None:
    """(w - 3)² from 10 in 50 steps: w - 3 is multiplied by 1 - 2 η each time."""
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor(10.0, dtype=torch.float64))
    optimiser = OPTIMISERS["sgd"](rate, rates="plain").build(model)
    for _ in range(50):
        optimiser.zero_grad()
        ((model.w - 3) ** 2).backward()
        optimiser.step()
    assert model.w.item() == pytest.approx(expected, abs=5e-5)


def test_rates_follow_the_width_by_the_kind_of_update() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(2, 8), nn.Embedding(5, 64), nn.LayerNorm(64))
    model.add_module("head", nn.Linear(64, 10))
    expected = {
        "sgd": (2.0, 4.0, 2.0, 2.0, 10 / 64),
        "adam": (0.5, 4.0, 1.0, 0.3, 0.5),
        "lion": (0.5, 4.0, 1.0, 0.3, 0.5),
        "muon": (1.0, 1.0, 0.03, 0.009, 0.015),
    }
    weights = (model[0].weight, model[1].weight, model[2].weight, model[3].weight, model.head.weight)
    for name, rates in expected.items():
        groups = OPTIMISERS[name](1.0).build(model).param_groups
        told = {id(weight): group["base_rate"] for group in groups for weight in group["params"]}
        assert [told[id(weight)] for weight in weights] == pytest.approx(rates), name


def test_a_tied_table_is_in_one_group_and_learns_as_the_output() -> None:
    model = language_model(tied=True)
    groups = {id(weight): group.kind for group in weight_groups(model) for weight in group.weights}
    assert groups[id(model.embedding.weight)] == "output"
    train(model, AdamWConfig(0.01).build(model), range(2))


def test_layers_of_other_models_are_matrices_too() -> None:
    model = nn.ModuleList([nn.Conv2d(3, 8, 5), nn.Conv1d(8, 8, 3, groups=8), nn.MultiheadAttention(16, 2)])
    kinds = {id(weight): (group.kind, group.fan_in) for group in weight_groups(model) for weight in group.weights}
    assert kinds[id(model[0].weight)] == ("matrix", 75)
    assert kinds[id(model[1].weight)] == ("vector", 1)
    assert kinds[id(model[2].in_proj_weight)] == kinds[id(model[2].out_proj.weight)] == ("matrix", 16)
    assert kinds[id(model[0].bias)] == ("vector", 1)
    optimiser = OPTIMISERS["muon"](0.1).build(model)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    before = model[0].weight.detach().clone()
    optimiser.step()
    change = (before * (1 - 0.1 * 0.1) - model[0].weight.detach()).view(8, 75) / 0.1
    assert torch.linalg.svdvals(change).allclose(torch.ones(8), atol=0.35)


def test_muon_orthogonalises_each_matrix_of_a_stack_by_itself() -> None:
    model = language_model()
    optimiser = OPTIMISERS["muon"](0.1, weight_decay=0.0).build(model)
    give_gradients(model)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    optimiser.step()
    stacks = [key for key, weight in model.named_parameters() if weight.dim() == 3]
    assert stacks
    for key in stacks:
        change = (before[key] - dict(model.named_parameters())[key].detach()) / 0.1
        ratio = math.sqrt(max(1.0, change.shape[1] / change.shape[2]))
        assert all(0.6 < torch.linalg.svdvals(matrix)[0] / ratio < 1.3 for matrix in change)


def test_eight_bits_are_two_bytes_a_weight_and_learn_as_float32() -> None:
    """Of a model whose matrices are large; the curve of AdamW's is followed."""
    curves = {}
    for name in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        model = LanguageModel(LanguageModelConfig((BlockConfig(AttentionConfig(heads=4)),), 64, depth=2, vocab=64))
        optimiser = OPTIMISERS[name](0.01).build(model)
        curves[name] = train(model, optimiser, range(30))
    held = optimiser.state[model.blocks[0].mixer.out.weight]
    weights = model.blocks[0].mixer.out.weight.numel()
    assert sum(t.numel() * t.element_size() for key, t in held.items() if key != "step") == weights * (2 + 8 / 256)
    assert curves["adamw"][-1] < 0.75 * curves["adamw"][0]
    for exact, eight in zip(*curves.values(), strict=True):
        assert eight == pytest.approx(exact, rel=0.03)


@each_optimiser
def test_a_model_without_weights_to_train_is_refused(name: str) -> None:
    for model in (nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(InputError, match="no weights to train"):
            OPTIMISERS[name](0.1).build(model)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({"exp_avg.other": torch.zeros(1)}, "no weight 'other'"), ({"exp_avg.0.weight": torch.zeros(2, 3)}, "shape")],
)
def test_a_state_of_another_model_is_refused(tensors: dict[str, Tensor], message: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(InputError, match=message):
        restore_state(model, AdamWConfig(0.1).build(model), tensors)
