"""Weights & Biases: offline in `RUN/wandb` (send it later with `wandb sync`), or as `WANDB_MODE` says."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verim.runtime.files import read_json, write_json


class WandbTracker:
    """A run of the project `WANDB_PROJECT`, else "verim": nothing leaves the machine unless `WANDB_MODE=online`.

    Which run it is stands in `RUN/wandb.json`, so that it goes on there when the run is taken up again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._run: Any = None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        import wandb  # an extra

        place = self._directory / "wandb.json"
        if not place.exists():
            write_json(place, {"run": uuid.uuid4().hex[:12]})
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "verim"),
            dir=self._directory,
            name=self._directory.name,
            id=read_json(place)["run"],
            resume="allow" if mode == "online" else None,
            mode=mode,
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if self._run is not None:
            self._run.summary.update(dict(result or {}))
            self._run.finish(exit_code=0)
