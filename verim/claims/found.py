"""All claims, found by importing the modules of `verim.claims.areas`, and those that were asked for."""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence

from verim.claims import areas
from verim.claims.claim import AREAS, REGISTRY, Claim
from verim.errors import InputError

QUICK_SECONDS = 3.0
"""What costs no more belongs to the quick set, all of which takes under two minutes."""


def claims() -> tuple[Claim, ...]:
    """All claims, in the order of their areas and, within one, of the code."""
    for module in pkgutil.iter_modules(areas.__path__):
        importlib.import_module(f"{areas.__name__}.{module.name}")
    order = list(AREAS)
    return tuple(sorted(REGISTRY.values(), key=lambda claim: order.index(claim.area)))


def select(ids: Sequence[str] = (), area_names: Sequence[str] = (), quick: bool = False) -> tuple[Claim, ...]:
    """The claims of these ids and areas, all where neither is given; of them only the cheap ones if `quick`.

    Raises `InputError` for an unknown id or area, naming the nearest ones that there are.
    """
    everything = claims()
    known = [claim.id for claim in everything]
    for id in ids:
        if id not in known:
            raise InputError(f"unknown claim {id!r}: {_nearest(id, known)}; verim claims lists them all")
    for area in area_names:
        if area not in AREAS:
            raise InputError(f"unknown area {area!r}: {_nearest(area, list(AREAS))}")
    asked = [claim for claim in everything if not (ids or area_names) or claim.id in ids or claim.area in area_names]
    return tuple(claim for claim in asked if not quick or claim.cost <= QUICK_SECONDS)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [one for one in known if name in one][:3]
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known[:12])}, …"
