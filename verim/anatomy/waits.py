"""What the step waits for and where: "61 % of the step waits for memory: RMSNorm and the optimiser"."""

from dataclasses import dataclass

from verim.anatomy.ledger import Bound, Op, Record
from verim.anatomy.words import listed, share_words

_WORDS: dict[Bound, str] = {
    "compute": "waits for arithmetic",
    "memory": "waits for memory",
    "launch": "goes to launches and to Python between ops",
}
_PARTS = {
    "optimiser": "the optimiser",
    "clip": "clipping",
    "loss": "the loss",
    "communication": "communication",
    "data": "the data",
    "copy": "copies to the device",
}
_WORTH_NAMING = 0.15  # of what waits for the same
_NAMED = 3


@dataclass(frozen=True)
class Wait:
    """Ops of one bound together.

    - `seconds` and `share`: of the step. `places`: where, by falling seconds: kinds of modules, or parts of the step.
    - `fraction`: the least seconds that arithmetic and memory allow over those taken; 0 for launches.
    """

    bound: Bound
    seconds: float
    share: float
    fraction: float
    places: tuple[tuple[str, float], ...]

    @property
    def sentence(self) -> str:
        """In words, without a full stop."""
        named = [name for name, seconds in self.places if seconds >= _WORTH_NAMING * self.seconds][:_NAMED]
        where = f": {listed(named)}" if named else ""
        return f"{share_words(self.share)} of the step {_WORDS[self.bound]}{where}"


def waits_of(record: Record) -> tuple[Wait, ...]:
    """What the step waits for, by falling seconds. What passes between ops counts as launches, as in the ledger."""
    kinds = {fact.name: fact.kind for fact in record.facts}
    places: dict[Bound, dict[str, float]] = {"compute": {}, "memory": {}, "launch": {}}
    inside: dict[Bound, list[Op]] = {"compute": [], "memory": [], "launch": []}

    def add(bound: Bound, op: Op, seconds: float) -> None:
        place = _PARTS.get(op.part) or kinds.get(op.module) or op.part
        places[bound][place] = places[bound].get(place, 0.0) + seconds

    for op in record.ops:
        bound = op.bound_by(record.ceilings)
        inside[bound].append(op)
        if bound != "launch":
            add(bound, op, op.seconds)
        add("launch", op, op.total_seconds if bound == "launch" else op.overhead_seconds)
    waits = []
    total = sum(part.seconds for part in record.parts)
    for bound, seconds in record.bound_seconds().items():
        taken = sum(op.seconds for op in inside[bound])
        least = sum(op.fraction_of_peak(record.ceilings) * op.seconds for op in inside[bound])
        waits.append(
            Wait(
                bound,
                seconds,
                seconds / total,
                least / taken if taken and bound != "launch" else 0.0,
                tuple(sorted(places[bound].items(), key=lambda place: -place[1])),
            )
        )
    return tuple(sorted((wait for wait in waits if wait.seconds), key=lambda wait: -wait.seconds))
