"""What holds for all tests: Triton's interpreter where there is no CUDA device, and the long files first."""

import os

import pytest
import torch

if not torch.cuda.is_available():  # Triton has to be told before its import
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: begun last, they would leave the other process with nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
