"""Attention: the standard form keeps all scores, the tiled one none; both compute the same."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from verim import anatomy, ops
from verim.anatomy.allocations import allocator_peak
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost, Between, Exactly, Goldens
from verim.claims.timing import growth, median_seconds, time_ratio
from verim.ops.attention import cost

_FLASH = "Dao et al. 2022, arXiv 2205.14135"
_HEADS, _HEAD_DIM = 8, 64
Heads = tuple[Tensor, Tensor, Tensor]
FORMS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "standard": lambda: ops.force_backend("reference"),
    "tiled": nullcontext,
}
"""The definition, which holds all scores at once, and the kernel."""


def _heads(length: int, heads: int = _HEADS, training: bool = True) -> Heads:
    q, k, v = (torch.randn(1, length, heads, _HEAD_DIM, requires_grad=training) for _ in range(3))
    return q, k, v


def _run(form: str, inputs: Heads) -> None:
    """Forward, and backward where the inputs want gradients."""
    with FORMS[form]():
        y = ops.attention(*inputs)
        if y.requires_grad:
            torch.autograd.grad(y.sum(), inputs)


def _peak(form: str, length: int, backward: bool) -> int:
    """The most bytes that lay in tensors beyond the inputs, in a second pass."""
    inputs = _heads(length, training=backward)
    _run(form, inputs)
    with allocator_peak(inputs[0].device) as peak:
        _run(form, inputs)
    assert peak.bytes is not None, "a profiler is running: the allocator's records are taken"
    return peak.bytes


def _memory_growth(form: str, lengths: Sequence[int]) -> list[Measurement]:
    found = []
    for backward, passes in ((False, "forward"), (True, "forward and backward")):
        exponent = growth(lengths, [_peak(form, length, backward) for length in lengths])
        conditions = (
            f"exponent of peak memory over N = {lengths[0]} … {lengths[-1]}, {passes}, {_HEADS} heads, causal, float32"
        )
        found.append(Measurement(exponent.exponent, conditions, exponent.interval))
    return found


@claim(
    id="attention-memory-standard",
    area="attention",
    text="Standard attention needs memory O(N²)",
    source=f"{_FLASH}, section 2.2",
    expected=Exactly(2.0, tolerance=0.1),
    cost=6,
    kind="measured",
)
def memory_of_standard(lengths: Sequence[int] = (512, 1024, 2048)) -> list[Measurement]:
    return _memory_growth("standard", lengths)


@claim(
    id="attention-memory-tiled",
    area="attention",
    text="Tiled attention needs memory O(N)",
    source=f"{_FLASH}, theorem 1",
    expected=Exactly(1.0, tolerance=0.15),
    cost=5,
    kind="measured",
)
def memory_of_tiled(lengths: Sequence[int] = (1024, 2048, 4096, 8192)) -> list[Measurement]:
    return _memory_growth("tiled", lengths)


@claim(
    id="attention-exact",
    area="attention",
    text="Tiled attention is exact: results and gradients are those of the standard form",
    source=f"{_FLASH}, theorem 1",
    expected=AtMost(1e-5),
    cost=0.5,
    kind="measured",
)
def exact() -> Measurement:
    inputs = _heads(777, heads=2)
    y = ops.attention(*inputs)
    found = [y, *torch.autograd.grad(y.square().sum(), inputs)]
    q, k, v = (tensor.detach().double().requires_grad_() for tensor in inputs)
    with ops.force_backend("reference"):
        y = ops.attention(q, k, v)
    expected = [y, *torch.autograd.grad(y.square().sum(), (q, k, v))]
    errors = {
        name: float(((one - other).norm() / other.norm()).detach())
        for name, one, other in zip(("result", "dQ", "dK", "dV"), found, expected, strict=True)
    }
    return Measurement(errors, "relative error in float32 against the definition in float64, N = 777, 2 heads of 64")


@claim(
    id="attention-recomputation-flops",
    area="attention",
    text="Recomputing the scores makes the backward pass cost 2.5 forward passes instead of 2",
    source="Dao 2023, arXiv 2307.08691, section 4.1 (FLOPs of forward and backward)",
    expected=Exactly(2.5, relative=0.02),
    cost=0.1,
    kind="computed",
    remark="counts products alone; with the elementwise work of the softmax it is 2 % less",
)
def recomputation_flops() -> Measurement:
    shape = (1, 2048, 2048, 16, _HEAD_DIM, True)
    forward, backward = cost.forward_cost(*shape), cost.backward_cost(*shape)
    ratio = (backward.flops + backward.recomputed_flops) / forward.flops
    return Measurement(
        ratio, f"hardware FLOPs of backward over forward, N = 2048, heads of {_HEAD_DIM}, softmax counted"
    )


@claim(
    id="attention-recomputation-memory",
    area="attention",
    text="Recomputation makes attention need 10 times less memory at N = 2048",
    source="flash-attention, README, section on memory",
    expected=AtLeast(10.0),
    cost=2,
    kind="measured",
)
def recomputation_memory(lengths: Sequence[int] = (512, 1024, 2048)) -> list[Measurement]:
    found = []
    for length in lengths:
        ratio = _peak("standard", length, True) / _peak("tiled", length, True)
        found.append(
            Measurement(
                ratio, f"peak memory of standard over tiled, forward and backward, N = {length}, {_HEADS} heads"
            )
        )
    return found


class _Attention(nn.Module):
    """Projected heads as weights, so that what is recorded is attention alone."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.heads = nn.Parameter(torch.randn(3, 1, length, 4, _HEAD_DIM))

    def forward(self, form: str) -> Tensor:
        q, k, v = self.heads.unbind(0)
        if form == "tiled":
            return ops.attention(q, k, v, causal=False)
        with sdpa_kernel(SDPBackend.MATH):
            return nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))


def _traffic(form: str, length: int) -> float:
    """Bytes that the ops of forward and backward read and wrote, each argument once and each result once."""
    model = _Attention(length)
    with anatomy.record(model) as recording:
        for _ in range(2):
            model(form).sum().backward()
            recording.step()
    return sum(op.bytes for op in recording.result.ops if op.part in ("forward", "backward"))


@claim(
    id="attention-traffic",
    area="attention",
    text="Tiled attention accesses the large memory up to 9 times less",
    source=f"{_FLASH}, section 1",
    expected=AtLeast(9.0),
    cost=2,
    kind="measured",
    remark="counted, not timed: each op reads its arguments and writes its results once; caches are not seen",
)
def traffic(lengths: Sequence[int] = (256, 1024, 2048)) -> list[Measurement]:
    found = []
    for length in lengths:
        ratio = _traffic("standard", length) / _traffic("tiled", length)
        conditions = f"bytes of torch's unfused attention over ours, forward and backward, N = {length}, 4 heads of 64"
        found.append(Measurement(ratio, conditions))
    return found


@claim(
    id="attention-time",
    area="attention",
    text="Time grows with N² for the standard and for the tiled form",
    source=f"{_FLASH}, section 2.2 and theorem 1",
    expected=Goldens({"standard": 2.0, "tiled": 2.0}, tolerance=0.25),
    cost=8,
    kind="measured",
)
def time(lengths: Sequence[int] = (1024, 2048, 4096)) -> Measurement:
    exponents = {}
    for form in FORMS:
        runs = [partial(_run, form, _heads(length, heads=4, training=False)) for length in lengths]
        exponents[form] = growth(lengths, median_seconds(runs, rounds=5)).exponent
    conditions = f"exponent of the median time, forward, N = {lengths[0]} … {lengths[-1]}, 4 heads of 64, float32"
    return Measurement(exponents, conditions)


@claim(
    id="attention-speed",
    area="attention",
    text="Tiled attention is faster than standard attention in spite of recomputation",
    source=f"{_FLASH}, section 3.1 and figure 3",
    expected=AtLeast(1.0),
    cost=4,
    kind="measured",
)
def speed(lengths: Sequence[int] = (128, 512, 2048)) -> list[Measurement]:
    found = []
    for length in lengths:
        inputs = _heads(length, heads=4)
        ratio = time_ratio(partial(_run, "standard", inputs), partial(_run, "tiled", inputs), rounds=5)
        conditions = f"time of standard over tiled, forward and backward, causal, N = {length}, 4 heads of 64, float32"
        found.append(Measurement(ratio.value, conditions, ratio.interval))
    return found


@claim(
    id="attention-window",
    area="attention",
    text="With a window of constant width attention takes time O(N)",
    source="Beltagy et al. 2020, arXiv 2004.05150, section 3.1",
    expected=Between(0.8, 1.2),
    cost=2,
    kind="measured",
)
def window(lengths: Sequence[int] = (2048, 4096, 8192, 16384)) -> Measurement:
    runs = []
    for length in lengths:
        q, k, v = _heads(length, training=False)
        runs.append(partial(ops.attention, q, k, v, window=256))
    found = growth(lengths, median_seconds(runs, rounds=5))
    conditions = f"exponent of the median time, forward, window 256, N = {lengths[0]} … {lengths[-1]}, {_HEADS} heads"
    return Measurement(found.exponent, conditions, found.interval)
