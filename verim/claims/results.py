"""What was found, as JSON values: a file for each claim, written whole, with date, machine and versions."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verim.claims.claim import Claim, Measurement
from verim.claims.expected import Value, in_words
from verim.claims.judge import decided
from verim.runtime.files import read_json, write_json


@dataclass(frozen=True)
class Result:
    """A claim and what became of it, all as JSON values.

    - `measurements`: each `value` (infinite ones as words), `shown`, `interval`, `conditions`, `holds`, and `decided`:
      whether the whole interval is judged like the value.
    - `error`: why it failed. `seconds`: what it took. `saved`: read from a file, not measured just now.
    """

    claim: dict[str, Any]
    verdict: str
    measurements: list[dict[str, Any]]
    error: str | None
    seconds: float
    date: str
    machine: dict[str, Any]
    verim: str
    code: str
    saved: bool = False

    def as_json(self) -> dict[str, Any]:
        """For a file or a page."""
        return asdict(self)


def measurement_json(claim: Claim, measurement: Measurement) -> dict[str, Any]:
    """One measurement, judged."""
    shown = in_words(measurement.value)
    if measurement.interval is not None:
        shown += f" ({' to '.join(in_words(end) for end in measurement.interval)})"
    return {
        "value": _finite(measurement.value),
        "shown": shown,
        "interval": None if measurement.interval is None else [_finite(end) for end in measurement.interval],
        "conditions": measurement.conditions,
        "holds": claim.expected.holds(measurement.value),
        "decided": decided(claim.expected, measurement),
    }


def save(result: Result, folder: Path) -> None:
    """Writes the result to its file in `folder`, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{result.claim['id']}.json", result.as_json())


def saved(claim: Claim, folder: Path) -> Result | None:
    """The claim's last result; None where there is none, or where the claim's text, figure or code has changed since.

    A failed one does not count either. Raises `CorruptError` for a file that does not parse.
    """
    path = folder / f"{claim.id}.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if found["error"] is not None or found["code"] != claim.code:
        return None
    return Result(**{**found, "claim": claim.as_json(), "saved": True})


def _finite(value: Value) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(number) for name, number in value.items()}
    return float(value) if math.isfinite(value) else str(float(value))
