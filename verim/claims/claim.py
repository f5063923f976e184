"""A claim: what the literature says, and the few lines that measure it here."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from verim.claims.expected import Expected, Value
from verim.errors import InputError

AREAS = {
    "scan": "Scan",
    "information": "Information",
    "attention": "Attention",
    "linear": "Linear models",
    "neuromorphic": "Neuromorphic learning",
    "scaling": "Scaling laws",
    "mor": "Mixture-of-Recursions",
    "gpu": "Anatomy of GPU training",
    "course": "Figures of a course",
}
"""The areas in the order in which they are told, with their titles."""

Kind = Literal["measured", "computed", "simulated"]


@dataclass(frozen=True)
class Measurement:
    """What was found under one set of conditions.

    - `value`: a number, or several by name.
    - `conditions`: shapes, data types, seeds, in words.
    - `interval`: where the number may lie, as both ends.
    """

    value: Value
    conditions: str
    interval: tuple[float, float] | None = None


Measure = Callable[..., Measurement | Sequence[Measurement]]
AnyMeasure = TypeVar("AnyMeasure", bound=Measure)


@dataclass(frozen=True)
class Claim:
    """See `claim`."""

    id: str
    area: str
    text: str
    source: str
    expected: Expected
    cost: float
    kind: Kind
    function: Measure
    remark: str = ""
    gpu: bool = False

    def measure(self) -> tuple[Measurement, ...]:
        """Calls the function; one measurement for each set of conditions."""
        found = self.function()
        several = (found,) if isinstance(found, Measurement) else tuple(found)
        assert several, f"claim {self.id} measured nothing"
        return several

    @property
    def code(self) -> str:
        """The source of the function, its decorator included."""
        return inspect.getsource(self.function)

    @property
    def place(self) -> str:
        """File and line of the function, from the folder that holds the package on."""
        file = Path(inspect.getsourcefile(self.function) or "unknown")
        parts = file.parts[file.parts.index("verim") :] if "verim" in file.parts else (file.name,)
        return f"{'/'.join(parts)}:{inspect.getsourcelines(self.function)[1]}"

    def as_json(self) -> dict[str, Any]:
        """The claim without what was found."""
        return {
            "id": self.id,
            "area": self.area,
            "text": self.text,
            "source": self.source,
            "expected": str(self.expected),
            "cost": self.cost,
            "kind": self.kind,
            "gpu": self.gpu,
            "remark": self.remark,
            "place": self.place,
        }


REGISTRY: dict[str, Claim] = {}
"""All claims of the modules that have been imported, by id; `verim.claims.claims()` imports all of them."""


def claim(
    *, id: str, area: str, text: str, source: str, expected: Expected, cost: float, kind: Kind, remark: str = "",
    gpu: bool = False,
) -> Callable[[AnyMeasure], AnyMeasure]:  # fmt: skip
    """Makes a claim of a function without required arguments that returns a `Measurement`, or several.

    - `id`: words and hyphens, for the command line; `area`: one of `AREAS`.
    - `text`: what is claimed, as one sentence; `source`: document and section, or paper, that says so.
    - `expected`: the figure, of `verim.claims.expected`. With several measurements, one for each set of conditions,
      the claim may hold under some of them only.
    - `cost`: seconds on two cores; what costs above a minute is read from saved results where there are some.
    - `kind`: *measured* on this machine, *computed* from formulas, *simulated* on a model.
    - `remark`: what a reader should know, above all where the source is wrong or rounded.
    - `gpu`: whether it can only be measured on a CUDA device.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id):
        raise InputError(f"claim: id is {id!r}, expected small letters, digits and hyphens")
    if area not in AREAS:
        raise InputError(f"claim {id}: area is {area!r}, expected one of {', '.join(AREAS)}")
    if kind not in get_args(Kind):
        raise InputError(f"claim {id}: kind is {kind!r}, expected one of {', '.join(get_args(Kind))}")
    if not cost > 0:
        raise InputError(f"claim {id}: cost is {cost!r}, expected seconds above 0")

    def register(function: AnyMeasure) -> AnyMeasure:
        found = Claim(id, area, text, source, expected, cost, kind, function, remark, gpu)
        known = REGISTRY.get(id)
        if known is not None and known.place != found.place:
            raise InputError(f"claim {id}: {known.place} has this id already: choose another")
        REGISTRY[id] = found
        return function

    return register
