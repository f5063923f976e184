"""The trainer, its tasks, optimisers and schedules."""

from verim.train.config import TrainerConfig
from verim.train.optimisers import AdamWConfig
from verim.train.schedules import WarmupStableDecay
from verim.train.task import ByteLanguageModelling, Task
from verim.train.trainer import Trainer

__all__ = ["AdamWConfig", "ByteLanguageModelling", "Task", "Trainer", "TrainerConfig", "WarmupStableDecay"]
