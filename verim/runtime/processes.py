"""Worker processes that leave nothing behind."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def follow_parent() -> None:
    """To be called in a worker process: it ends when its parent ends, however that comes, and not at Ctrl-C.

    A keyboard's interrupt reaches every process of the terminal; here the parent alone decides what to stop. A killed
    parent stops nobody: the worker waits for its end and then goes at once, as if killed itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)
