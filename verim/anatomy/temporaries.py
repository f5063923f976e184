"""Buffers that operators hold inside while they run, beside their arguments and results.

The allocator sees them, a dispatch mode does not. Known by operator, as bytes from the shapes; the tests compare with
the allocator's records.
"""

from collections.abc import Callable
from typing import Any

from verim.anatomy import library


def temporary_bytes(operator: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes that the call holds inside at its most; 0 where none are known of."""
    rule = _RULES.get(f"{operator.namespace}.{operator._overloadpacket.__name__}")
    return 0 if rule is None else rule(arguments)


_RULES: dict[str, Callable[[tuple[Any, ...]], int]] = {
    library.FORWARD: library.inside_forward,
    library.BACKWARD: library.inside_backward,
}
