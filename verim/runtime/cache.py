"""Where Verim keeps what it measured on this machine between runs."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """The directory of cached measurements: `VERIM_CACHE`, else the user's cache directory (XDG), created."""
    named = os.environ.get("VERIM_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "verim"
    base.mkdir(parents=True, exist_ok=True)
    return base
