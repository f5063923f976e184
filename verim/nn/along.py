"""The ops that look along the sequence, as mixers call them: here, or over the ranks that hold its pieces."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from verim import ops
from verim.nn.time_invariant import time_invariant_scan


class Along(Protocol):
    """How a mixer looks along the sequence.

    A mixer that computes only by these, and one position at a time otherwise, works unchanged on a sequence whose
    pieces lie on ranks (`verim.train.parallel.context`): they are all that differs. Each is the op of that name, with
    its arguments; what comes back as a state is for the mixer's own state.
    """

    def positions(self, length: int) -> Sequence[range]:
        """Which positions of the sequence its `length` rows are."""
        ...

    def row_before(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch width"]:
        """The row before the first of `x`, zeros where the sequence begins."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor: ...

    def rotary_attention(self, qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor: ...

    def causal_conv1d(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, activation: str | None = None
    ) -> tuple[Tensor, Any]: ...

    def linear_recurrence(self, a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Any]: ...

    def selective_scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]: ...

    def state_space_dual(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]: ...

    def time_invariant_scan(
        self, u: Tensor, log_transition: Tensor, weight: Tensor, skip: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]: ...

    def wkv(self, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None) -> tuple[Tensor, Any]: ...

    def wkv7(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Any]: ...


@runtime_checkable
class LooksAlong(Protocol):
    """A module that looks along the sequence by `along` alone."""

    along: Along


class Here:
    """The whole sequence is here."""

    def positions(self, length: int) -> Sequence[range]:
        return (range(length),)

    def row_before(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch width"]:
        return x.new_zeros(x.shape[0], x.shape[2])

    def attention(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return ops.attention(q, k, v, window=window)

    def rotary_attention(self, qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        return ops.rotary_attention(qkv, cosines, sines)

    def causal_conv1d(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, activation: str | None = None
    ) -> tuple[Tensor, Any]:
        return ops.causal_conv1d(x, weight, bias, initial, return_state=True, activation=activation)

    def linear_recurrence(self, a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Any]:
        return ops.linear_recurrence(a, b, initial, return_state=True)

    def selective_scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]:
        return ops.selective_scan(u, delta, A, B, C, D, initial, return_state=True)

    def state_space_dual(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]:
        return ops.state_space_dual(x, delta, A, B, C, D, initial, return_state=True)

    def time_invariant_scan(
        self, u: Tensor, log_transition: Tensor, weight: Tensor, skip: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]:
        return time_invariant_scan(u, log_transition, weight, skip, initial)

    def wkv(self, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None) -> tuple[Tensor, Any]:
        return ops.wkv(k, v, w, u, state, return_state=True)

    def wkv7(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Any]:
        return ops.wkv7(r, w, k, v, a, b, state, return_state=True)


HERE: Along = Here()
