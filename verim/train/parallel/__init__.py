"""Training over the ranks of a process group, on PyTorch's engines, composed from one configuration."""

from verim.train.parallel.config import ParallelConfig

__all__ = ["ParallelConfig"]
