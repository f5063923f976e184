"""Where a run's figures go beside `metrics.jsonl`: TensorBoard, MLflow, Weights & Biases; each an extra.

with trackers(["tensorboard", "mlflow"], run.path, warn=print) as followers:
    followers.start(run.config(), step)
    followers.log(step, {"loss": 2.5})
    followers.finish(result)
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verim.errors import InputError
from verim.runs.trackers.mlflow import MLflowTracker
from verim.runs.trackers.tensorboard import TensorBoardTracker
from verim.runs.trackers.tracker import Behind, Tracker
from verim.runs.trackers.wandb import WandbTracker

__all__ = ["TRACKERS", "Followers", "Tracker", "trackers"]

TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MLflowTracker,
    "wandb": WandbTracker,
}
"""What makes the tracker of a run directory, by the name of the package it needs, which is that of the extra too."""


class Followers:
    """Several trackers as one, of which none can slow down or stop the training."""

    def __init__(self, followers: Sequence[Behind]) -> None:
        self._followers = followers
        self._finished = False

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """The run begins, or goes on, after `step` steps."""
        for follower in self._followers:
            follower.do(lambda tracker: tracker.start(config, step))

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """What was measured at `step`; what is not a number is left out."""
        numbers = {
            key: float(value)
            for key, value in figures.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for follower in self._followers:
            follower.do(lambda tracker: tracker.log(step, numbers))

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """The run ends, with this result or without one (it was stopped)."""
        self._finished = True
        for follower in self._followers:
            follower.do(lambda tracker: tracker.finish(result))

    def close(self) -> None:
        """Returns when the trackers have taken everything, or their patience is over."""
        if not self._finished:
            self.finish(None)
        for follower in self._followers:
            follower.end()


@contextmanager
def trackers(
    names: Sequence[str], directory: Path, warn: Callable[[str], None], patience_seconds: float = 60.0
) -> Iterator[Followers]:
    """The trackers of these names (of `TRACKERS`) for the run in `directory`.

    A tracker that fails later is left out, and `warn` is told so once. Raises `InputError` for a name that there is
    not, and for one whose package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"tracker: got {name!r}, expected any of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:  # not imported here: MLflow alone takes seconds
            raise InputError(
                f"tracker {name}: its package is not installed: pip install 'verim[{name}]', or leave the tracker out"
            )
    followers = Followers(
        [Behind(name, TRACKERS[name](directory), warn, patience_seconds) for name in dict.fromkeys(names)]
    )
    try:
        yield followers
    finally:
        followers.close()
