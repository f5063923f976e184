"""Copies of tensors on the CPU, taken quickly, so that training may go on while the copies are written."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Staging:
    """Buffers that are kept from one checkpoint to the next: only the first one pays for fresh memory.

    They take as many bytes as the tensors; for tensors of a CUDA device they are pinned, so that the copies run
    one behind the other at the speed of the bus."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `tensors` hold now, on the CPU and contiguous; valid until the next call.

        Tensors under two names (tied weights) are copied once and share a buffer here too."""
        held, self._buffers = self._buffers, {}
        staged: dict[str, Tensor] = {}
        first_names: dict[tuple[object, ...], str] = {}
        devices: set[torch.device] = set()
        for name, tensor in tensors.items():
            source = tensor.detach()
            place = (source.device, source.data_ptr(), source.dtype, source.shape, source.stride())
            first = first_names.setdefault(place, name)
            if first in staged and source.numel():
                staged[name] = staged[first]
                continue
            buffer = held.get(name)
            if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
                buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            buffer.copy_(source, non_blocking=source.is_cuda)
            self._buffers[name] = staged[name] = buffer
            if source.is_cuda:
                devices.add(source.device)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return staged
