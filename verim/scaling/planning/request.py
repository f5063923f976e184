"""What is asked of a plan."""

import math
from dataclasses import dataclass, fields

from verim.errors import InputError
from verim.models import ARCHITECTURES

BUDGETS = ("hours", "minutes", "flops", "parameters")
OPTIONS = {"parameters": "params"}
"""Fields whose option on the command line has another name."""
DEVICE, COUNT = "h100", 8
LAW = "epoch"
"""The refit of Chinchilla's runs: of the published laws the one with intervals."""
THIS = "this"


@dataclass(frozen=True)
class PlanRequest:
    """A budget, one of `hours` or `minutes` on the devices, training `flops`, and `parameters` (then the tokens are
    those for which that many are compute-optimal); where; and by which law. None is left to the rules.

    - `device`: a name of `verim.anatomy.devices`, "this" being this machine, of `count`.
    - `law`: a name of `verim.scaling.published.LAWS`, or a study's directory.
    - `inference_tokens`: how many the model will be asked for over its life.
    - `length`, `vocab`: of sequences and their tokens; None: 2048 and 32 000, and 128 and 256, bytes, on this machine
      and by a study's law.
    - `price`: of an hour of one device, in the user's money.
    """

    hours: float | None = None
    minutes: float | None = None
    flops: float | None = None
    parameters: float | None = None
    device: str | None = None
    count: int | None = None
    law: str = LAW
    inference_tokens: float | None = None
    architecture: str = "transformer"
    length: int | None = None
    vocab: int | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            said = " with ".join(f"--{OPTIONS.get(name, name)}" for name in given) or "none of them"
            options = ", ".join(f"--{OPTIONS.get(name, name)}" for name in BUDGETS)
            raise InputError(f"budget: got {said}; expected one of {options}: each says how large the training is")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                name = OPTIONS.get(field.name, field.name)
                raise InputError(f"{name}: got {value:g}, expected a finite number above 0")
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"architecture: got {self.architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
        if self.is_here and (self.count or 1) > 1:
            raise InputError(f"count: got {self.count} with this machine; expected 1, or name the --device")

    @property
    def is_here(self) -> bool:
        """Whether it is about this machine."""
        return self.device == THIS

    @property
    def seconds(self) -> float | None:
        """The budget of time."""
        if self.hours is not None:
            return 3600 * self.hours
        return None if self.minutes is None else 60 * self.minutes
