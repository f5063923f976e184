"""The state of every generator of random numbers that a training may use, as tensors of a checkpoint."""

import json
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def random_state(prefix: str = "random") -> dict[str, Tensor]:
    """The state of torch's generators (CPU and every CUDA device in use), numpy's and Python's, under `prefix`.

    With several ranks each gives a prefix of its own: their generators differ.

    >>> saved = random_state()
    >>> first = torch.rand(1), random.random()
    >>> restore_random_state(saved)
    True
    >>> (torch.rand(1), random.random()) == first
    True
    """
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what others drew from is saved, none drawn
    assert kind == "MT19937", f"numpy's global generator is an MT19937, got {kind}"
    numpy_state = [np.asarray(keys).tolist(), *rest]
    states = {
        "torch": torch.get_rng_state(),
        "numpy": _as_tensor(json.dumps(numpy_state)),
        "python": _as_tensor(json.dumps(random.getstate())),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda.{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    return {f"{prefix}.{name}": state for name, state in states.items()}


def restore_random_state(tensors: Mapping[str, Tensor], prefix: str = "random") -> bool:
    """Puts back what `random_state` gave; False, with nothing changed, where `tensors` hold no state of `prefix`.

    States of CUDA devices that are not here are left out, so a run may go on on another machine."""
    if f"{prefix}.torch" not in tensors:
        return False
    torch.set_rng_state(tensors[f"{prefix}.torch"])
    keys, *rest = json.loads(_as_text(tensors[f"{prefix}.numpy"]))
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, words, gaussian = json.loads(_as_text(tensors[f"{prefix}.python"]))
    random.setstate((version, tuple(words), gaussian))
    for device in range(torch.cuda.device_count()):
        if f"{prefix}.cuda.{device}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{prefix}.cuda.{device}"], device)
    return True


def _as_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _as_text(tensor: Tensor) -> str:
    return tensor.numpy().tobytes().decode()
