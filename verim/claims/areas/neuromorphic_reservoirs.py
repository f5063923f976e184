"""Neuromorphic learning: reservoirs, whose readout alone is trained."""

import time
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost
from verim.neuro import ColumnConfig, EchoStateNetwork, Liquid, Reservoir, ReservoirConfig
from verim.neuro.echo.capacity import memory_profile
from verim.neuro.echo.signals import narma10
from verim.neuro.liquid import quality
from verim.nn.mixers import RNNConfig
from verim.recipes import liquid_templates
from verim.recipes import narma10 as narma10_recipe
from verim.train.optimisers import AdamConfig

_MAASS = "Maass, Natschläger and Markram 2002, Neural Computation 14, 2531"
_WASHOUT = 100


@claim(
    id="neuromorphic-liquid-separates",
    area="neuromorphic",
    text="A liquid's states tell inputs apart, by more than other first voltages do",
    source=f"{_MAASS}, figure 2",
    expected=AtLeast(1.0),
    cost=2,
    kind="simulated",
)
def liquid_separates(trials: int = 20) -> list[Measurement]:
    found = quality.separation(Liquid(ColumnConfig(inputs=4, seed=0)), (0.02, 0.1, 1.0), trials)
    return [
        Measurement(
            float(state) / found.chance,
            f"distance of states over that from other first voltages, {100 * share:.0f} % of the input drawn anew, "
            f"{trials} pairs, 135 neurons",
        )
        for share, state in zip((0.02, 0.1, 1.0), found.states, strict=True)
    ]


@claim(
    id="neuromorphic-liquid-computes",
    area="neuromorphic",
    text="A linear readout of a liquid answers what no linear readout of its input can, an exclusive or",
    source=f"{_MAASS}, section 4",
    expected=AtLeast(0.1),
    cost=3,
    kind="simulated",
)
def liquid_computes(samples: int = 400, seeds: int = 3) -> Measurement:
    experiment = liquid_templates.Experiment(samples=samples, seeds=seeds)
    rates: dict[str, list[float]] = {readout: [] for readout in ("liquid", "input", "delay line")}
    for seed in range(seeds):
        score = liquid_templates.classify(experiment, seed)
        for readout, answers in rates.items():
            answers.append(score[readout]["same or not"])
    gains = [one - max(others) for one, *others in zip(*rates.values(), strict=True)]
    means = ", ".join(f"{readout} {fmean(answers):.2f}" for readout, answers in rates.items())
    return Measurement(
        fmean(gains),
        f"share of right answers beyond the better linear readout of the input ({means}; chance 0.5): are two jittered "
        f"templates the same? {seeds} seeds (least to most)",
        (min(gains), max(gains)),
    )


@claim(
    id="neuromorphic-readout-is-cheap",
    area="neuromorphic",
    text="Training the readout alone costs less than backpropagation through time",
    source="Jaeger 2001, GMD report 148, section 1; Lukoševičius and Jaeger 2009, Computer Science Review 3, 127",
    expected=AtLeast(10.0),
    cost=8,
    kind="measured",
)
def readout_is_cheap(updates: int = 50, units: int = 50, length: int = 1100) -> list[Measurement]:
    u, y = (signal[None, :, None] for signal in narma10(length, seed=0))
    network = EchoStateNetwork(Reservoir(ReservoirConfig(units=units, spectral_radius=0.8, input_scale=0.1)))
    network.fit(u, y)  # compiles
    began = time.perf_counter()
    network.fit(u, y)
    readout_seconds, error = time.perf_counter() - began, 1 - network.score(u, y)
    seconds, trained = _through_time(u.float(), y.float(), units, updates)
    said = f"over those of the readout of an echo state network of {units} units (NMSE {error:.2f}), {length} steps"
    return [
        Measurement(seconds / readout_seconds, f"seconds of {updates} updates of an RNN (NMSE {trained:.2f}), {said}"),
        Measurement(seconds / updates / readout_seconds, f"seconds of a single update, {said}"),
    ]


def _through_time(u: Tensor, y: Tensor, units: int, updates: int) -> tuple[float, float]:
    """Seconds and training error of so many updates of an RNN of as many units."""
    model = nn.ModuleList([nn.Linear(1, units), RNNConfig().build(units), nn.Linear(units, 1)])
    optimiser = AdamConfig(0.003).build(model)
    variance = y[:, _WASHOUT:].var(correction=0)
    began = time.perf_counter()
    for _ in range(updates):
        hidden, _ = model[1](model[0](u))
        loss = (model[2](hidden) - y)[:, _WASHOUT:].square().mean() / variance
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - began, float(loss.detach())


@claim(
    id="neuromorphic-memory-capacity",
    area="neuromorphic",
    text="The memory capacity of a reservoir is at most its number of units",
    source="Jaeger 2001, GMD report 152, proposition 2",
    expected=AtMost(1.0),
    cost=1,
    kind="measured",
)
def memory_capacity(sizes: Sequence[int] = (10, 20, 40)) -> list[Measurement]:
    found = []
    for units in sizes:
        u = torch.rand(4000, dtype=torch.float64) - 0.5
        states = Reservoir(ReservoirConfig(units=units, input_scale=0.1)).states(u[None, :, None])[0]
        capacity = float(memory_profile(states, u, delays=2 * units, washout=2 * units + _WASHOUT).sum())
        found.append(Measurement(capacity / units, f"capacity over units, {units} units, 4000 independent inputs"))
    return found


@claim(
    id="neuromorphic-narma10",
    area="neuromorphic",
    text="A reservoir of 50 units predicts NARMA10 with an NMSE of 0.107",
    source="Vinckier et al. 2015, Optica 2, 438 (1000 points)",
    expected=AtMost(0.107),
    cost=2,
    kind="measured",
    remark="the source reads squares of the states, as a photodetector does",
)
def narma(seeds: int = 10) -> list[Measurement]:
    experiment = narma10_recipe.Experiment(seeds=seeds)
    errors: dict[str, list[float]] = {}
    for seed in range(seeds):
        found, y = narma10_recipe.predictions(experiment, seed)
        for name, said in found.items():
            errors.setdefault(name, []).append(float((said - y).square().mean() / y.var(correction=0)))
    beside = f"{seeds} seeds (least to most); a delay line of 50 taps has {fmean(errors.pop('delay line')):.3f}"
    return [
        Measurement(fmean(each), f"NMSE, readout of {name}, {beside}", (min(each), max(each)))
        for name, each in errors.items()
    ]
