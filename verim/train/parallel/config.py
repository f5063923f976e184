"""How a model is trained over ranks, as one value that is checked before anything starts."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from verim.errors import InputError
from verim.models import LanguageModelConfig
from verim.nn import MixtureOfExpertsConfig
from verim.train.parallel.splits import CONTEXT, TENSOR, divisors

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]

DIMENSIONS = ("pipeline", "data", "expert", "context", "shard", "tensor")
"""From the ranks that talk least to those that talk most: neighbours in the last dimension are on one machine."""


@dataclass(frozen=True)
class ParallelConfig:
    """Ranks in six dimensions; their product is the number of processes.

    - `data`: copies of the model, each with its rows of the batch (DDP).
    - `shard`: ranks with their own rows of the batch that share what is kept: with `zero` 1 the optimiser's state, with
      2 also gradients, with 3 also weights (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 5).
      `offload`: what is kept lies in the memory of the CPU (`zero` 2 or 3, CUDA devices alone).
    - `tensor`: ranks that share every layer's matrices (Shoeybi et al. 2019, arXiv 1909.08053, section 3), and the same
      rows. `sequence_parallel`: between the layers each keeps its part of the positions (Korthikanti et al. 2022,
      arXiv 2205.05198, section 4.2.2).
    - `pipeline`: stages, each with its blocks; a batch passes in `micro_batches` pieces as `pipeline_schedule` says.
    - `context`: ranks that share the positions of every sequence.
    - `expert`: ranks with their own rows that share the experts.
    - `activation_checkpointing`: what of a block is computed again in the backward pass: "none"; "full", all but its
      input; "selective", all but the results of matrix products and of kernels along the sequence. Of every
      `checkpoint_every`-th block.

    A rank takes rows in the order of (data, expert, shard).
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    zero: Literal[1, 2, 3] = 3
    offload: bool = False
    sequence_parallel: bool = False
    micro_batches: int = 1
    pipeline_schedule: Schedule = "1f1b"
    activation_checkpointing: Recompute = "none"
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        for name in (*DIMENSIONS, "micro_batches", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name, known in (
            ("zero", (1, 2, 3)),
            ("pipeline_schedule", get_args(Schedule)),
            ("activation_checkpointing", get_args(Recompute)),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(map(str, known))}")
        if self.offload and self.zero == 1:
            raise InputError("offload: got True with zero 1, which keeps whole weights; expected zero 2 or 3")

    @property
    def ranks(self) -> int:
        """How many processes it takes."""
        return math.prod(getattr(self, name) for name in DIMENSIONS)

    @property
    def rows(self) -> int:
        """How many parts the rows of a batch are divided into."""
        return self.data * self.expert * self.shard

    def check(self, model: LanguageModelConfig, ranks: int, batch: int, length: int) -> None:
        """Raises `InputError`, naming the field and what it can be, where `model` with batches of `batch` sequences of
        `length` cannot be trained so on `ranks` processes."""
        self.check_ranks(ranks)
        if batch % self.rows:
            parts = " · ".join(name for name in ("data", "expert", "shard") if getattr(self, name) > 1)
            raise InputError(
                f"{parts}: got {self.rows} for a batch of {batch} sequences; {_expected(batch)}, or another batch"
            )
        if batch // self.rows % self.micro_batches:
            raise InputError(
                f"micro_batches: got {self.micro_batches} for {batch // self.rows} sequences a rank; "
                f"{_expected(batch // self.rows)}"
            )
        if self.pipeline > model.blocks:
            raise InputError(
                f"pipeline: got {self.pipeline} stages for {model.blocks} blocks; expected at most {model.blocks}, or "
                "a deeper model"
            )
        if model.recursion is not None:
            self._check_recursion(model.recursion.routing is not None)
        if length % self.context:
            raise InputError(
                f"context: got {self.context} for sequences of {length}; {_expected(length)}, or another length"
            )
        if self.sequence_parallel and length % self.tensor:
            raise InputError(
                f"tensor: got {self.tensor} with sequence_parallel for sequences of {length}; {_expected(length)}, or "
                "sequence_parallel False"
            )
        layers = {layer for block in model.pattern for layer in (block.mixer, block.feed_forward) if layer is not None}
        for layer in sorted(layers, key=repr):
            self._check_layer(layer, model.width)
        self._check_pairs(any(isinstance(layer, MixtureOfExpertsConfig) for layer in layers))
        if self.expert > 1 and not any(isinstance(layer, MixtureOfExpertsConfig) for layer in layers):
            raise InputError(f"expert: got {self.expert} for a model without experts; expected 1, or use data")

    def _check_pairs(self, experts: bool) -> None:
        """Refuses pairs of dimensions for which no one has said what a rank does."""
        pairs = [
            ("pipeline", name) for name in ("shard", "tensor", "context", "expert") if name != "shard" or self.zero > 1
        ]
        pairs += [("expert", "tensor"), ("expert", "context"), ("context", "sequence_parallel")]
        for one, other in pairs:
            if getattr(self, one) > 1 and int(getattr(self, other)) > (other != "sequence_parallel"):
                remedy = "zero 1" if other == "shard" else f"{other} 1"
                remedy = "sequence_parallel False" if other == "sequence_parallel" else remedy
                raise InputError(
                    f"{one}: got {getattr(self, one)} with {other} {getattr(self, other)}, which do not go together; "
                    f"expected {one} 1, or {remedy}"
                )
        if self.pipeline > 1 and self.data > 1 and experts:
            raise InputError(
                f"pipeline: got {self.pipeline} with data {self.data} for a model of experts; expected data 1"
            )

    def check_ranks(self, ranks: int) -> None:
        """Raises `InputError` where it takes another number of processes than `ranks`."""
        if self.ranks != ranks:
            raise InputError(self._product(ranks))

    def _check_layer(self, layer: Any, width: int) -> None:
        kind = type(layer).__name__.removesuffix("Config")
        if self.tensor > 1:
            if type(layer) not in TENSOR:
                raise InputError(f"tensor: got {self.tensor}, expected 1: {kind} cannot be divided over tensor ranks")
            for name, size in TENSOR[type(layer)](layer, width).items():
                if size % self.tensor:
                    raise InputError(f"tensor: got {self.tensor} for {kind} with {name} = {size}; {_expected(size)}")
        if self.context > 1 and type(layer) not in CONTEXT:
            known = ", ".join(sorted(kind.__name__.removesuffix("Config") for kind in CONTEXT))
            raise InputError(
                f"context: got {self.context}, expected 1: the positions of {kind} cannot lie on several ranks; those "
                f"of {known} can"
            )
        if isinstance(layer, MixtureOfExpertsConfig) and layer.experts % self.expert:
            raise InputError(f"expert: got {self.expert} for {layer.experts} experts; {_expected(layer.experts)}")

    def _check_recursion(self, routed: bool) -> None:
        """Routed tokens go past a block's forward pass, where weights are gathered, exchanged and computed again."""
        refused = {"pipeline": self.pipeline > 1}
        if routed:
            refused |= {
                "tensor": self.tensor > 1,
                "shard": self.shard > 1 and self.zero > 1,
                "activation_checkpointing": self.activation_checkpointing != "none",
            }
        for name, asked in refused.items():
            if asked:
                other = "1, or zero 1" if name == "shard" else "'none'" if name.startswith("act") else "1"
                kind = "routed recursion" if routed else "recursion"
                raise InputError(f"{name}: got {getattr(self, name)!r} for a model with {kind}; expected {other}")

    def _product(self, ranks: int) -> str:
        """What to say where the dimensions do not give `ranks`."""
        named = [name for name in DIMENSIONS if getattr(self, name) > 1] or ["data"]
        product = " · ".join(f"{name} {getattr(self, name)}" for name in named)
        rest, remainder = divmod(ranks, self.ranks // self.data)
        remedy = f"set data to {rest}" if rest and not remainder else f"choose dimensions whose product is {ranks}"
        if rest and not remainder and self.data == 1 and self.shard > 1:
            remedy += f", or shard to {rest * self.shard}"
        return f"{product}: {self.ranks} ranks, but {ranks} were given; {remedy}, or start {self.ranks} processes"


def _expected(size: int) -> str:
    return f"expected one of {', '.join(map(str, divisors(size)))}"
