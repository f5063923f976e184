"""What a run held after some step, and how it is put back into a model: on one process or on many."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from verim.errors import CorruptError, InputError
from verim.runs.shards import Held, ShardedTensors, own_pieces, shape_of, slices_of

_NAMED = 3
"""How many differences a message names."""


@dataclass(frozen=True)
class Record:
    """What a checkpoint says beside its tensors."""

    step: int
    state: dict[str, Any]
    metrics_bytes: int
    figures: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: Any, path: Path) -> "Record":
        """The record in `path`, which holds `fields` (JSON). Raises `CorruptError` where it is none."""
        try:
            return cls(fields["step"], fields["state"], fields["metrics_bytes"], fields.get("figures", {}))
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{path} is not a checkpoint of Verim ({error})") from error

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Checkpoint":
        """The checkpoint of this record and these tensors."""
        return Checkpoint(self.step, tensors, self.state, self.metrics_bytes, self.figures)


@dataclass(frozen=True)
class Checkpoint:
    """What a run held after `step` steps, when its metrics had `metrics_bytes`.

    `tensors` lie on the CPU; those of a run with several ranks are read when they are asked for. `figures` are the
    held-out figures of that step, if any were taken. `warning` says what was passed over to get here (a newer
    checkpoint that is damaged); None where nothing was."""

    step: int
    tensors: Mapping[str, Tensor]
    state: dict[str, Any]
    metrics_bytes: int
    figures: dict[str, float | None] = field(default_factory=dict)
    warning: str | None = None

    def load_into(self, targets: Mapping[str, Held]) -> None:
        """Copies the checkpoint's values into the tensors of those names, each rank only the pieces it holds.

        A target may be a `DTensor` in any placement or a `SliceOf`, on any number of ranks. Tensors of the
        checkpoint that are no target are left alone. Raises `InputError`, before anything is changed, where a target
        is not in the checkpoint or has another shape there: the checkpoint is that of another model.
        """
        differences = [
            f"{name} is {'not there' if shape is None else shape} in the checkpoint, {shape_of(target)} here"
            for name, target in targets.items()
            if (shape := self._shape(name)) != shape_of(target)
        ]
        if differences:
            more = f" and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
            raise InputError(
                f"the checkpoint of step {self.step} is of another model: {'; '.join(differences[:_NAMED])}{more}; "
                "resume with the model it was saved from"
            )
        for name, target in targets.items():
            for piece in own_pieces(name, target):
                if isinstance(self.tensors, ShardedTensors):
                    self.tensors.read_into(name, piece.tensor, piece.box)
                else:
                    piece.tensor.copy_(self.tensors[name][slices_of(piece.box)])

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name not in self.tensors:
            return None
        return self.tensors.shape(name) if isinstance(self.tensors, ShardedTensors) else shape_of(self.tensors[name])
