"""Training over the ranks of a process group, on PyTorch's engines, composed from one configuration."""

from verim.train.parallel.config import ParallelConfig
from verim.train.parallel.entry import Parallel, parallelize
from verim.train.parallel.tensor import Layout
from verim.train.parallel.traffic import Traffic, Transfer, volume

__all__ = ["Layout", "Parallel", "ParallelConfig", "Traffic", "Transfer", "parallelize", "volume"]
