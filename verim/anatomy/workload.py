"""A training step of a language model as a value: what `verim anatomy` measures and what a prediction imagines."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from verim import ops
from verim.errors import InputError
from verim.models import ARCHITECTURES, BlockConfig, LanguageModel, LanguageModelConfig, architecture_config
from verim.models.sizes import depth_of
from verim.nn import SwiGLUConfig, auxiliary_losses
from verim.nn.mixers import MIXERS
from verim.runtime.phases import phase

Precision = Literal["float32", "bfloat16", "float16"]
OptimiserOf = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Workload:
    """One update of a language model on `batch` sequences of `length` tokens.

    - `precision`: "bfloat16" and "float16" run the forward pass under `torch.autocast`, the weights in float32.
      The loss is not scaled for float16: its steps are for measuring, not for training.
    - `checkpointing`: blocks keep only their inputs and run a second time in the backward pass.
    - `accumulation`: the batch in so many parts, one after the other, whose gradients are added.
    - `clip`: the gradient's norm is limited; 0, not.
    """

    batch: int = 8
    length: int = 256
    precision: Precision = "float32"
    checkpointing: bool = False
    accumulation: int = 1
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch", "length", "accumulation"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.batch % self.accumulation:
            raise InputError(
                f"accumulation: got {self.accumulation} for batch {self.batch}, expected one of its divisors"
            )
        if self.precision not in get_args(Precision):
            raise InputError(f"precision: got {self.precision!r}, expected one of {', '.join(get_args(Precision))}")
        if not self.clip >= 0:
            raise InputError(f"clip: got {self.clip}, expected a norm, or 0 for none")

    def prepare(self, model: LanguageModel) -> None:
        """Makes the blocks of `model` checkpointed where that is asked for."""
        if self.checkpointing:
            for block in model.blocks:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)

    def draw(self, model: LanguageModel) -> Tensor:
        """Random tokens of a step, [batch, length + 1], on the model's device."""
        return torch.randint(0, model.config.vocab, (self.batch, self.length + 1), device=model.head.weight.device)

    def step(self, model: LanguageModel, optimiser: torch.optim.Optimizer, tokens: Tensor) -> None:
        """The update, its parts named."""
        for part in tokens.chunk(self.accumulation):
            kind = tokens.device.type
            is_lower = self.precision != "float32"
            lower = torch.autocast(kind, getattr(torch, self.precision)) if is_lower else nullcontext()
            with lower, auxiliary_losses() as others:
                logits, _ = model(part[:, :-1])
                with phase("loss"):
                    loss = sum(others, ops.cross_entropy(logits, part[:, 1:])) / self.accumulation
                del logits, _
            loss.backward()
            del loss
        if self.clip:
            with phase("clip"):
                nn.utils.clip_grad_norm_(model.parameters(), self.clip, foreach=True)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW in one pass over each weight."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def model_config(name: str, width: int) -> LanguageModelConfig:
    """The model of an architecture, or of a mixer with SwiGLU between, at a width; its depth follows from the width.

    Raises `InputError` for a name that is neither.
    """
    if name in ARCHITECTURES:
        return architecture_config(name, width)
    if name not in MIXERS:
        known = ", ".join(dict.fromkeys([*ARCHITECTURES, *MIXERS]))
        raise InputError(f"model: got {name!r}, expected one of {known}")
    if width < 1:
        raise InputError(f"width: got {width}, expected at least 1")
    given = {"heads": max(1, width // 16)} if name == "attention" else {}
    block = BlockConfig(MIXERS[name](**given), SwiGLUConfig(hidden=8 * max(1, round(width / 3))))
    return LanguageModelConfig((block,), width, depth_of(width))
