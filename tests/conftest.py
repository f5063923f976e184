"""Triton kernels run in Triton's interpreter where there is no CUDA device. It has to be told before its import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
