"""A carry handed from block to block, between threads that work on different blocks at the same time.

Threads draw tickets, so blocks begin in their order, and whoever holds a block knows that the one before it is
finished or in some thread's hands: waiting for its carry ends. A block first finds out what it adds to the carry,
waits for the carry that comes in, hands on the one that goes out, and only then does its work, on data that lie in
the cache by now: memory is read once. (Merrill and Garland's single-pass scan, NVIDIA technical report NVR-2016-002,
without the look back over several blocks, which a few threads do not need.) The order of the sums is that of the
blocks, whatever the number of threads.
"""

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types

from verim.ops.vectors import intrinsic

_ADDRESS = ir.IntType(64)


@intrinsic
def draw_ticket(typing: Any, address: Any) -> Any:
    """The 64-bit integer at `address`, which becomes one larger: every thread gets another."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _ADDRESS.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_ADDRESS, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def hand_on(typing: Any, address: Any) -> Any:
    """Sets the flag at `address`: what this thread wrote before is seen by who `wait_for`s the flag."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _ADDRESS.as_pointer())
        builder.store_atomic(ir.Constant(_ADDRESS, 1), pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def is_handed_on(typing: Any, address: Any) -> Any:
    """Whether the flag at `address` has been set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        flag = builder.load_atomic(builder.inttoptr(args[0], _ADDRESS.as_pointer()), "acquire", 8)
        return builder.icmp_signed("!=", flag, ir.Constant(_ADDRESS, 0))

    return types.boolean(types.int64), generate


@njit(nogil=True)
def wait_for(address: int) -> None:
    """Returns when the flag at `address` has been set."""
    while not is_handed_on(address):
        pass


@njit(nogil=True)
def has_come(address: int, patience: int) -> bool:
    """Whether the flag at `address` has been set, after looking `patience` times more if need be."""
    for _ in range(patience):
        if is_handed_on(address):
            return True
    return is_handed_on(address)


@intrinsic
def finish_streams(typing: Any) -> Any:
    """After stores past the caches: they are seen before anything this thread writes later."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
