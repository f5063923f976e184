"""The ops that look along the sequence, as mixers call them: here, or over the ranks that hold its pieces."""

from collections.abc import Sequence
from typing import Any, Protocol

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

    def selective_scan(self, *tensors: Any, initial: Tensor | None) -> tuple[Tensor, Any]: ...

    def state_space_dual(self, *tensors: Any, initial: Tensor | None) -> tuple[Tensor, Any]: ...

    def time_invariant_scan(self, *tensors: Any, initial: Tensor | None) -> tuple[Tensor, Any]: ...

    def wkv(self, *tensors: Any, state: Tensor | None) -> tuple[Tensor, Any]: ...

    def wkv7(self, *tensors: Any, state: Tensor | None) -> tuple[Tensor, Any]: ...


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

    def selective_scan(self, *tensors: Any, initial: Tensor | None) -> tuple[Tensor, Any]:
        return ops.selective_scan(*tensors, initial=initial, return_state=True)

    def state_space_dual(self, *tensors: Any, initial: Tensor | None) -> tuple[Tensor, Any]:
        return ops.state_space_dual(*tensors, initial=initial, return_state=True)

    def time_invariant_scan(self, *tensors: Any, initial: Tensor | None) -> tuple[Tensor, Any]:
        return time_invariant_scan(*tensors, initial=initial)

    def wkv(self, *tensors: Any, state: Tensor | None) -> tuple[Tensor, Any]:
        return ops.wkv(*tensors, state=state, return_state=True)

    def wkv7(self, *tensors: Any, state: Tensor | None) -> tuple[Tensor, Any]:
        return ops.wkv7(*tensors, state=state, return_state=True)


HERE: Along = Here()
