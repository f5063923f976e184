"""The trainer, its tasks, optimisers and schedules."""

from verim.train.optimiser import AdamWConfig
from verim.train.schedule import WarmupStableDecay
from verim.train.task import ByteLanguageModelling, Task
from verim.train.trainer import Trainer, TrainerConfig

__all__ = ["AdamWConfig", "ByteLanguageModelling", "Task", "Trainer", "TrainerConfig", "WarmupStableDecay"]
