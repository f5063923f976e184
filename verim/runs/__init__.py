"""The run directory: configuration, metrics, checkpoints and result of one run, each whole or not there."""

from verim.runs.checkpoint import Checkpoint
from verim.runs.directory import RunDirectory
from verim.runs.lock import locked

__all__ = ["Checkpoint", "RunDirectory", "locked"]
