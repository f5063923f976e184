"""Configurations as JSON: frozen dataclasses, some of them one kind of several that a registry names."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from verim.errors import InputError

Kind = TypeVar("Kind")


def named(value: Any, kinds: Mapping[str, type]) -> dict[str, Any] | None:
    """The fields of `value`, one of the `kinds`, and the name of its kind; None for None."""
    if value is None:
        return None
    name = next(name for name, kind in kinds.items() if kind is type(value))
    return {"kind": name, **asdict(value)}


def built(kinds: Mapping[str, type[Kind]], value: Any, place: str) -> Kind:
    """The object that `named` described. Raises `InputError` naming `place` for a kind or field that is unknown."""
    if not isinstance(value, dict) or value.get("kind") not in kinds:
        got = value.get("kind") if isinstance(value, dict) else value
        raise InputError(f"{place}.kind: got {got!r}, expected one of {', '.join(kinds)}")
    return filled(kinds[value["kind"]], {name: given for name, given in value.items() if name != "kind"}, place)


def filled(kind: type[Kind], value: dict[str, Any], place: str) -> Kind:
    """An object of the dataclass `kind`; fields that it does not know, or lacks, are named."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    unknown = [name for name in value if name not in known]
    if unknown:
        raise InputError(f"{place}.{unknown[0]}: unknown; expected some of {', '.join(sorted(known))}")
    try:
        return kind(**value)
    except TypeError as error:
        raise InputError(f"{place}: {error}") from None
