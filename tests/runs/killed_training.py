"""A training that is killed again and again, in children of one process: see test_killed_runs.py.

    python killed_training.py FOLDER random|boundaries SEED

`random`: the child is killed from outside after a random time. `boundaries`: it kills itself at its n-th call that
changes the disk, half of a file written, for n = 1, 2, 3, …. Prints, as JSON, how many were killed, how many of them
while they wrote a checkpoint, and in which steps they were taken up again.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from verim.runs import RunDirectory, random_state, restore_random_state
from verim.runtime import tensors

STEPS = 20
WIDTH = 96


def train(directory: Path, started: Callable[[int], None] = lambda step: None) -> None:
    """Weights that depend on every step's batch, dropout, schedule, moments and all three generators."""
    torch.manual_seed(0)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what a checkpoint has to bring back
    random.seed(2)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3), nn.Linear(WIDTH, 1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = RunDirectory(directory)
    with run.writing(wait_seconds=5):
        checkpoint = run.start({"width": WIDTH})
        step = checkpoint.step if checkpoint else 0
        if checkpoint is not None:
            model.load_state_dict(part(checkpoint.tensors, "model."))
            names = [name for name, _ in model.named_parameters()]
            state = {number: part(checkpoint.tensors, f"optimiser.{name}.") for number, name in enumerate(names)}
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
            restore_random_state(checkpoint.tensors)
            assert checkpoint.state == {"place": [step, 7 * step]}
        started(step)
        while step < STEPS:
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * (1 - step / STEPS)
            batch = torch.randn(4, WIDTH) * random.random() + float(np.random.rand())  # noqa: NPY002
            loss = model(batch).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            run.log({"step": step, "loss": loss.item()})
            held = {f"model.{name}": weight for name, weight in model.state_dict().items()}
            for name, weight in model.named_parameters():
                held |= {f"optimiser.{name}.{key}": value for key, value in optimiser.state[weight].items()}
            run.save_checkpoint(step, held | random_state(), {"place": [step, 7 * step]}, {"loss": loss.item()})
        run.finish({"steps": step})


def part(held: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}


def die_at(number: int) -> None:
    """From here on the `number`-th call that changes the disk is the last, and a file then is half written."""
    calls = 0

    def dying(real: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                if half is not None:
                    half(real, *arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    def half_file(real: Callable[..., Any], content: Any, path: Path, **options: Any) -> None:
        real(content, path, **options)
        os.truncate(path, path.stat().st_size // 2)

    def half_line(real: Callable[..., Any], file: int, line: bytes) -> None:
        real(file, line[: len(line) // 2])

    tensors.save_file = dying(tensors.save_file, half_file)  # type: ignore[assignment]
    for name in ("fsync", "replace", "ftruncate"):
        setattr(os, name, dying(getattr(os, name)))
    os.write = dying(os.write, half_line)  # type: ignore[assignment]
    Path.unlink = dying(Path.unlink)  # type: ignore[method-assign]


def child(act: Callable[[], None]) -> int:
    process = os.fork()
    if process == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return process


def main() -> None:
    folder, manner, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    os.fsync = lambda file: None  # type: ignore[assignment] # a kill is no power cut: what was written is not lost
    warm = nn.Parameter(torch.zeros(1))
    warm.grad = torch.zeros(1)
    torch.optim.AdamW([warm]).step()  # imports what every child would else import again
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    began = time.perf_counter()
    assert os.waitpid(child(lambda: train(undisturbed)), 0)[1] == 0
    whole_seconds = time.perf_counter() - began
    choice = random.Random(seed)
    said = folder / "steps"
    said.touch()

    def noted(step: int) -> None:
        with said.open("a") as file:
            file.write(f"{step}\n")

    kills = halves = 0
    number = 0
    while True:
        number += 1
        delay = choice.uniform(0, whole_seconds / 6)
        dies_at = number

        def act(dies_at: int = dies_at) -> None:
            if manner == "boundaries":
                die_at(dies_at)
            train(killed, noted)

        process = child(act)
        if manner == "random" and number <= 25:
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        if status == 0:
            break
        assert os.WIFSIGNALED(status), "the training failed"
        kills += 1
        halves += any((killed / "checkpoints").glob(".*.partial"))
    print(json.dumps({"kills": kills, "halves": halves, "steps": [int(step) for step in said.read_text().split()]}))


if __name__ == "__main__":
    main()
