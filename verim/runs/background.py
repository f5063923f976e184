"""One piece of work after the other, behind the back of the training: its errors come up at the next call."""

import threading
from collections.abc import Callable


class Background:
    """Does one piece of work at a time in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins `work` when the work before it is done. Raises what that work raised."""
        self.wait()

        def act() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        # A daemon, so that a second Ctrl-C ends the process; who wants the work done waits for it.
        self._thread = threading.Thread(target=act, name=self._name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what the work raised, without waiting for its end. Costs less than a µs."""
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being done. Raises, once, what the work raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
