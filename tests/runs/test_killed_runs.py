"""A run that was killed at any moment and taken up again has the bits of one that was never stopped."""

import json
import subprocess
import sys
from pathlib import Path

import killed_training
import pytest
import torch

from verim.runs import RunDirectory


@pytest.mark.parametrize("manner", ["random", "boundaries"])
def test_a_killed_run_ends_with_the_same_bits(manner: str, tmp_path: Path) -> None:
    """Weights, moments, random generators, the loader's place, and every line of the metrics."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(killed_training.__file__)), str(tmp_path), manner, "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] >= (5 if manner == "random" else 15)  # how many come in time hangs on the load
    if manner == "boundaries":
        assert told["halves"] >= 5
        assert len(set(told["steps"])) > 5
    undisturbed, killed = RunDirectory(tmp_path / "undisturbed"), RunDirectory(tmp_path / "killed")
    assert (undisturbed.path / "metrics.jsonl").read_bytes() == (killed.path / "metrics.jsonl").read_bytes()
    assert killed.result() == undisturbed.result() == {"steps": killed_training.STEPS}
    assert killed.checkpoint_steps() == undisturbed.checkpoint_steps()
    for step in killed.checkpoint_steps():
        one, other = undisturbed.checkpoint(step), killed.checkpoint(step)
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        assert (one.state, one.metrics_bytes, one.figures) == (other.state, other.metrics_bytes, other.figures)
    assert not list(killed.path.glob("checkpoints/.*"))
