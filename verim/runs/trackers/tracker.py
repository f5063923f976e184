"""What every tracker does, and how it does it without the training noticing."""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

_LONGEST_QUEUE = 100_000
"""Steps that a tracker may lag behind; what comes on top of that is dropped, and said once."""


class Tracker(Protocol):
    """Takes a run's figures somewhere. Beside `metrics.jsonl`, which is always written and complete."""

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """The run begins after `step` steps: 0, or where it was taken up again. All may be slow, and may raise."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """What was measured at `step`; steps rise."""

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """The run ends with this result, or is stopped (None) and may be taken up again."""


class Behind:
    """A tracker in a thread of its own: a call takes some µs, whatever the tracker does.

    When it raises it is given up: `warn` is called once, with what to tell the user, and training goes on."""

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None], patience_seconds: float) -> None:
        self._name, self._tracker, self._warn, self._patience = name, tracker, warn, patience_seconds
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_LONGEST_QUEUE)
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def do(self, call: Callable[[Tracker], None]) -> None:
        """Has `call` done, after those before it."""
        if not self._given_up:
            try:
                self._calls.put_nowait(lambda: call(self._tracker))
            except queue.Full:
                self._give_up(f"it is {_LONGEST_QUEUE} steps behind")

    def end(self) -> None:
        """Returns when all is done, or given up, or after the seconds of patience."""
        if not self._given_up:
            self._calls.put(None)
            self._thread.join(self._patience)
            if self._thread.is_alive():
                self._give_up(f"it had not taken everything {self._patience:.0f} s after the end")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._given_up:
            try:
                call()
            except Exception as error:
                self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        if not self._given_up:
            self._given_up = True
            self._warn(
                f"tracker {self._name} failed and is left out from here on ({' '.join(why.split())}): "
                "training goes on, and all figures are in metrics.jsonl"
            )
