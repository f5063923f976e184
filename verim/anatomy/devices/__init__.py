"""Devices: a table of what data sheets say, each row with its source, and this machine, measured.

>>> device("H100").peak("bfloat16") / 1e12
989.4
>>> round(device("a100").ridge("bfloat16"))  # FLOPs a byte from which on a product is bound by compute
153
"""

import re

from verim.anatomy.devices.device import Device, Multiprocessor
from verim.anatomy.devices.here import this_machine
from verim.anatomy.devices.table import ALIASES, TABLE
from verim.errors import InputError

__all__ = ["Device", "Multiprocessor", "device", "devices", "this_machine"]

THIS = "this"


def devices() -> tuple[str, ...]:
    """The names of the table."""
    return tuple(TABLE)


def device(name: str) -> Device:
    """The device of that name, in letters of any case ("H100-SXM", "RTX 4090"); "this" is this machine, measured.

    A name that leaves the kind open is that of the usual one: "a100" has 80 GB, "h100" is SXM. Raises `InputError`,
    which lists the names, for another.
    """
    plain = _plain(name)
    if plain == THIS or plain == _plain("this-machine"):
        return this_machine()
    known = {_plain(key): key for key in TABLE} | {_plain(key): row for key, row in ALIASES.items()}
    if plain not in known:
        raise InputError(f"device: got {name!r}, expected one of {', '.join([THIS, *TABLE])}")
    return TABLE[known[plain]]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())
