"""Kills a study at random moments and resumes it until it ends: python tests/scaling/kill_study.py --kills 20

First a study runs undisturbed. A second one takes over its ladder (the corpus and the sizes measured, nothing trained)
and is killed with SIGKILL, it and its workers left to themselves, after a random time, again and again, each time going
on with --resume. In the end every number of study.json that is not a time must be equal to the bit.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TIMES = ("seconds", "flops_per_second", "created", "machine")


def study(*options: str | Path) -> list[str]:
    return [sys.executable, "-m", "verim", "study", *map(str, options)]


def numbers(value: Any) -> Any:
    """`value` without what is a time."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return value


def undisturbed(directory: Path, options: list[str]) -> dict[str, Any]:
    subprocess.run(study("--out", directory, *options), check=True, capture_output=True, text=True)
    return json.loads((directory / "study.json").read_text())


def disturbed(directory: Path, ladder_of: Path, kills: int, seed: int) -> tuple[dict[str, Any], int]:
    """The result after `kills` kills, and how many of them hit a running study."""
    directory.mkdir()
    for name in ("config.json", "corpus.json", "corpus.safetensors", "ladder.json"):
        shutil.copy(ladder_of / name, directory / name)
    moments = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = subprocess.Popen(study("--resume", directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(1, 14))
        hit += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (directory / "study.json").exists():
            break
    subprocess.run(study("--resume", directory), check=True, stdout=subprocess.DEVNULL)
    return json.loads((directory / "study.json").read_text()), hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", default="2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        whole = undisturbed(Path(place) / "whole", ["--minutes", options.minutes])
        killed, hit = disturbed(Path(place) / "killed", Path(place) / "whole", options.kills, options.seed)
    same = numbers(whole) == numbers(killed)
    print(f"{hit} kills; study.json {'has the same numbers' if same else 'DIFFERS'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
