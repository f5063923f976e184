"""MLflow: a tracking server (`MLFLOW_TRACKING_URI`), or without one an SQLite file in the run's directory."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verim.runtime.files import read_json, write_json

_BATCH = 500
"""A call of MLflow's takes about 3 ms, whether it brings one figure or this many."""

_SECONDS = 10.0
"""So old may a figure become before it is sent."""

_PARAMETERS = 100
"""MLflow's own limit to a call."""

_LONGEST = 6000
"""MLflow's own limit to the text of a parameter."""


class MLflowTracker:
    """A run of the experiment "verim": the configuration as parameters, figures in batches, the result as metrics.

    Which run it is stands in `RUN/mlflow.json`, so that it goes on there when the run is taken up again (MLflow
    cannot forget the steps that are done anew: it shows both)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._client: Any = None
        self._run = ""
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def start(self, config: Mapping[str, Any], step: int) -> None:
        from mlflow import MlflowClient  # an extra

        place, store = self._directory / "mlflow.json", self._directory.resolve() / "mlflow.db"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store}"
        self._client = MlflowClient(tracking_uri=uri)
        if place.exists() and (held := read_json(place))["uri"] == uri:
            self._run = held["run"]
            self._client.update_run(self._run, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name("verim")
        number = experiment.experiment_id if experiment else self._client.create_experiment("verim")
        self._run = self._client.create_run(number, run_name=self._directory.name).info.run_id
        write_json(place, {"uri": uri, "run": self._run})
        self._log_parameters(config)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in figures.items()]
        if len(self._waiting) >= _BATCH or time.monotonic() - self._sent > _SECONDS:
            self._send()

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if self._client is None:
            return
        for name, value in (result or {}).items():
            if isinstance(value, int | float):
                self.log(0, {f"result.{name}": value})
        self._send()
        self._client.set_terminated(self._run, status="KILLED" if result is None else "FINISHED")

    def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            self._client.log_batch(self._run, metrics=batch)
        self._sent = time.monotonic()

    def _log_parameters(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, text[:_LONGEST]) for name, text in _flat(config)]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._run, params=parameters[start : start + _PARAMETERS])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested mappings by their dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
