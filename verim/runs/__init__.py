"""The run directory: configuration, metrics, checkpoints and result of one run, each whole or not there."""

from verim.runs.checkpoint import Checkpoint
from verim.runs.directory import RunDirectory
from verim.runs.lock import locked
from verim.runs.random_state import random_state, restore_random_state
from verim.runs.ranks import Ranks
from verim.runs.retention import Retention
from verim.runs.shards import SliceOf

__all__ = [
    "Checkpoint",
    "Ranks",
    "Retention",
    "RunDirectory",
    "SliceOf",
    "locked",
    "random_state",
    "restore_random_state",
]
