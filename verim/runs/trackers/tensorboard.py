"""TensorBoard: event files in `RUN/tensorboard`, for `tensorboard --logdir RUN`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardTracker:
    """Scalars by step, the configuration and the result as text.

    A run that is taken up again tells TensorBoard to forget the steps that are done anew."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "tensorboard"
        self._writer: Any = None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra

        again = self._directory.exists()
        self._writer = SummaryWriter(str(self._directory), purge_step=step + 1 if again else None)
        self._writer.add_text("config", _as_code(config), step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if self._writer is not None:
            if result is not None:
                self._writer.add_text("result", _as_code(result))
            self._writer.close()


def _as_code(values: Mapping[str, Any]) -> str:
    return "    " + json.dumps(dict(values), indent=2, default=str).replace("\n", "\n    ")
