"""Checks that run on the ranks of a process group: started together, and what came out of each on each rank."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

Results = list[dict[str, str | None]]
"""By rank: the name of each check that ran, with None or a traceback."""


def run_on_ranks(script: Path, world: int, folder: Path, *arguments: str, seconds: float = 1200) -> Results:
    """Runs `python script RANK WORLD FOLDER *arguments` once for each rank; each writes FOLDER/RANK.json."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(world), str(folder), *arguments], env=environment)
        for rank in range(world)
    ]
    last = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in ranks):
            assert all(not process.returncode for process in ranks), "a rank did not start: see its standard error"
            assert time.monotonic() < last, "the ranks wait for each other"
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def require(name: str, results: Results) -> None:
    """The check `name` succeeded on every rank."""
    for rank, came_out in enumerate(results):
        assert name in came_out, f"rank {rank} did not get here; before: {list(came_out.values())[-1:]}"
        assert came_out[name] is None, f"rank {rank}: {came_out[name]}"
