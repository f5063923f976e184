"""One process to a directory: a lock that dies with the process that holds it, however that process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from verim.errors import BusyError


@contextmanager
def locked(directory: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds `directory` (created where it does not exist) for this process as long as the context lasts.

    The operating system keeps the lock (`flock` on an open file), so it goes with its process, after a kill
    too; the file `.lock` that stays behind means nothing. `wait_seconds` is how long to wait for an owner
    that is just dying. A second holder is refused inside one process as well.

    Raises `BusyError` where another holder keeps it longer than that.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock", timeout=wait_seconds, thread_local=False)
    try:
        lock.acquire(poll_interval=0.02)
    except Timeout as error:
        raise BusyError(
            f"{directory} is in use by another process: let it end, stop it, or name another directory"
        ) from error
    try:
        yield
    finally:
        lock.release()
