"""`verim.ops.spiking` beside brian2: simulated time a second, and whether both fire alike.

    python benchmarks/spiking.py --brian /path/to/python --record benchmarks/RESULTS.md

brian2 does not import beside NumPy 2.4 and later, so it runs in an interpreter of its own: `--brian`, or the
environment variable BRIAN_PYTHON (pip install brian2 "numpy<2.4" cython setuptools there). Both sides simulate the
same network in steps of 0.1 ms: leaky integrate-and-fire neurons, 100 synapses each, a fifth of them inhibitory,
driven to about 40 Hz by currents that differ; weights, delays, targets, currents and first voltages are the same
numbers. They take turns, one thread each. Speed is the time of a long run less that of a short one, over their
difference: neither compilation nor construction counts. First the rates are compared: their means, and the
Kolmogorov-Smirnov distance of the two distributions over neurons.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STEP, DELAY, SHORT = 0.1, 1.5, 20.0  # milliseconds
EXCITATION, INHIBITION, DEGREE = 0.1, -0.5, 100
TARGETS = ("numpy", "cython")


def network(count: int) -> dict[str, np.ndarray]:
    """What both sides simulate."""
    generator = np.random.default_rng(count)
    return {
        "targets": generator.integers(0, count, (count, DEGREE)),
        "background": np.linspace(17.0, 35.0, count),
        "voltage": 15 * generator.random(count),
    }


def ours(folder: Path, milliseconds: float) -> tuple[float, np.ndarray]:
    """Seconds and spikes of each neuron."""
    import torch

    from verim.ops.spiking import Neurons, Synapses, initial_state, simulate

    torch.set_num_threads(1)
    parts = {name: torch.from_numpy(value) for name, value in np.load(folder / "network.npz").items()}
    count = len(parts["voltage"])
    sources = torch.arange(count).repeat_interleave(DEGREE)
    weights = torch.where(sources < count * 4 // 5, EXCITATION, INHIBITION)
    recurrent = Synapses.between(sources, parts["targets"].flatten(), weights, round(DELAY / STEP), source_count=count)
    neurons = Neurons(count, STEP, 20.0, reset=0.0, refractory=2.0, background=parts["background"])
    state = initial_state(1, neurons, None, recurrent, weights, parts["voltage"][None])
    simulate(neurons, 1, recurrent=recurrent, state=state)  # compiled before anything is timed
    began = time.perf_counter()
    spikes, _ = simulate(neurons, round(milliseconds / STEP), recurrent=recurrent, state=state)
    return time.perf_counter() - began, spikes.counts()[0].numpy()


def brian(folder: Path, milliseconds: float, target: str) -> tuple[float, np.ndarray]:
    """The same by brian2, in this interpreter."""
    import brian2

    brian2.prefs.codegen.target = target
    brian2.defaultclock.dt = STEP * brian2.ms
    parts = np.load(folder / "network.npz")
    count = len(parts["voltage"])
    equations = """
    dv/dt = (x + y + background - v) / (20*ms) : 1 (unless refractory)
    dx/dt = -x / (3*ms) : 1
    dy/dt = -y / (6*ms) : 1
    background : 1
    """
    group = brian2.NeuronGroup(
        count, equations, threshold="v >= 15", reset="v = 0", refractory=2 * brian2.ms, method="exact"
    )
    group.background, group.v = parts["background"], parts["voltage"]
    sources = np.repeat(np.arange(count), DEGREE)
    excites = sources < count * 4 // 5
    synapses = []
    for chosen, kind, weight in ((excites, "x", EXCITATION), (~excites, "y", INHIBITION)):
        part = brian2.Synapses(group, group, on_pre=f"{kind} += {weight}", delay=DELAY * brian2.ms)
        part.connect(i=sources[chosen], j=parts["targets"].ravel()[chosen])
        synapses.append(part)
    monitor = brian2.SpikeMonitor(group)
    simulation = brian2.Network(group, *synapses, monitor)
    began = time.perf_counter()
    simulation.run(milliseconds * brian2.ms)
    return time.perf_counter() - began, np.array(monitor.count)


def measured(side: str, folder: Path, milliseconds: float, interpreter: str) -> tuple[float, np.ndarray]:
    """One side's seconds and counts, in a process of its own."""
    out = folder / "counts.npy"
    python = sys.executable if side == "verim" else interpreter
    command = [python, __file__, "--side", side, "--folder", str(folder), "--milliseconds", str(milliseconds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return float(told.split()[-1]), np.load(out)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two cumulative distributions."""
    places = np.union1d(one, other)
    below = (np.searchsorted(np.sort(values), places, "right") / len(values) for values in (one, other))
    first, second = below
    return float(np.abs(first - second).max())


def compare(count: int, milliseconds: float, rounds: int, interpreter: str) -> dict[str, object]:
    """All sides on one size of network, taking turns after a first time that compiles what is to be compiled."""
    sides = ("verim", *TARGETS) if interpreter else ("verim",)
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    counts: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "network.npz", **network(count))
        for side in sides:
            measured(side, folder, SHORT, interpreter)
        for _ in range(rounds):
            for side in sides:
                short, _ = measured(side, folder, SHORT, interpreter)
                long, counts[side] = measured(side, folder, SHORT + milliseconds, interpreter)
                speeds[side].append(milliseconds / (long - short))
    rates = {side: own / ((SHORT + milliseconds) / 1000) for side, own in counts.items()}
    return {
        "neurons": count,
        "simulated_milliseconds_a_second": {side: float(np.median(own)) for side, own in speeds.items()},
        "mean_rate_hz": {side: float(own.mean()) for side, own in rates.items()},
        "rate_deviation_hz": {side: float(own.std()) for side, own in rates.items()},
        "rate_distance_to_verim": {side: distance(rates["verim"], own) for side, own in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--brian", default=os.environ.get("BRIAN_PYTHON", ""), help="an interpreter with brian2")
    parser.add_argument("--neurons", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--milliseconds", type=float, default=500.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="a Markdown file to which the result is appended")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        own = (given.folder, given.milliseconds)
        seconds, counts = ours(*own) if given.side == "verim" else brian(*own, given.side)
        np.save(given.folder / "counts.npy", counts)
        print(seconds)
        return
    if not given.brian:
        print("no --brian and no BRIAN_PYTHON: verim alone", file=sys.stderr)
    records = [compare(count, given.milliseconds, given.rounds, given.brian) for count in given.neurons]
    text = json.dumps(records, indent=1)
    print(text)
    if given.record:
        heading = f"\n## Spiking networks beside brian2, {time.strftime('%Y-%m-%d')}\n"
        with given.record.open("a", encoding="utf-8") as file:
            file.write(f"{heading}\n`python benchmarks/spiking.py`, one thread a side.\n\n```json\n{text}\n```\n")


if __name__ == "__main__":
    main()
