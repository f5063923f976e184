"""All kernels as torch sees them: operators whose fakes tell the truth, that compile, and whose FLOPs are counted."""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import verim.ops
from verim.ops import (
    attention,
    causal_conv1d,
    cross_entropy,
    linear_cross_entropy,
    linear_recurrence,
    prefix_sum,
    rms_norm,
    rotary,
    rotary_attention,
    selective_scan,
    state_space_dual,
    swiglu,
    wkv,
    wkv7,
)
from verim.ops.kernel import KERNELS


@dataclass(frozen=True)
class Case:
    """A call of a public op: its tensors, and the kernels that must run, forward and, if it `trains`, backward."""

    op: Callable[..., Tensor]
    tensors: Callable[[], list[Tensor]]
    kernels: tuple[str, ...]
    trains: bool = True


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def heads_of_states() -> list[Tensor]:
    """x, delta, A, B, C, D and a state for `state_space_dual`."""
    sequences = normal(2, 9, 4, 6), normal(2, 9, 4).sigmoid(), -normal(4).exp(), normal(2, 9, 2, 5), normal(2, 9, 2, 5)
    return [*sequences, normal(4), normal(2, 4, 5, 6)]


CASES = {
    "causal_conv1d": Case(
        lambda *t: torch.cat([part.flatten() for part in causal_conv1d(*t, return_state=True, activation="silu")]),
        lambda: [normal(2, 9, 20), normal(20, 4), normal(20), normal(2, 3, 20)],
        ("convolution_forward", "convolution_backward"),
    ),
    "cross_entropy": Case(
        cross_entropy,
        lambda: [normal(2, 9, 20).transpose(0, 1), torch.arange(18).view(9, 2)],
        ("cross_entropy_forward",),
    ),
    "rms_norm": Case(
        rms_norm,
        lambda: [normal(2, 9, 20).transpose(0, 1), normal(20)],
        ("rms_norm_forward", "rms_norm_backward"),
    ),
    "rms_norm in bfloat16": Case(
        rms_norm,
        lambda: [normal(2, 9, 20).bfloat16(), normal(20)],
        ("rms_norm_forward", "rms_norm_backward"),
    ),
    "rotary": Case(
        lambda x, cosines, sines: rotary(x, cosines.detach(), sines.detach()) + 0 * (cosines + sines).sum(),
        lambda: [normal(2, 9, 3, 20).transpose(2, 3).contiguous().transpose(2, 3), normal(9, 10), normal(9, 10)],
        ("rotate", "rotate"),
    ),
    "swiglu": Case(swiglu, lambda: [normal(2, 9, 20).transpose(0, 1)], ("swiglu_forward", "swiglu_backward")),
    "linear_cross_entropy": Case(
        lambda hidden, weight, bias, targets: linear_cross_entropy(hidden, weight, targets, bias=bias),
        lambda: [normal(2, 9, 20), normal(40, 20), normal(40), torch.arange(18).view(2, 9)],
        ("linear_cross_entropy_gradients",),
    ),
    "linear_cross_entropy of each position": Case(
        lambda hidden, weight, targets: linear_cross_entropy(hidden, weight, targets, 3, softcap=4.0, reduction="none"),
        lambda: [normal(9, 20), normal(40, 20), torch.arange(9)],
        ("linear_cross_entropy_forward", "linear_cross_entropy_backward"),
    ),
    "linear_recurrence": Case(
        linear_recurrence,
        lambda: [normal(2, 9, 20).sigmoid(), normal(2, 9, 20)],
        ("recurrence_forward", "recurrence_backward"),
    ),
    "linear_recurrence of one channel from a state": Case(
        lambda *t: torch.cat([part.flatten() for part in linear_recurrence(*t, reverse=True, return_state=True)]),
        lambda: [normal(1).sigmoid(), normal(2, 9, 1), normal(2, 1)],
        ("recurrence_forward", "recurrence_backward"),
    ),
    "prefix_sum": Case(
        functools.partial(prefix_sum, dim=0, exclusive=True),
        lambda: [normal(2, 400, 400)],
        ("prefix_sum_forward", "prefix_sum_forward"),
    ),
    "selective_scan": Case(
        selective_scan,
        lambda: [normal(2, 9, 20), normal(2, 9, 20).sigmoid(), -normal(20, 5).exp(), normal(2, 9, 5), normal(2, 9, 5)],
        ("scan_forward", "scan_backward"),
    ),
    "selective_scan from a state": Case(
        lambda *t: torch.cat([part.flatten() for part in selective_scan(*t, return_state=True)]),
        lambda: [
            *(normal(2, 9, 20), normal(2, 9, 20).sigmoid(), -normal(20, 8).exp(), normal(2, 9, 8), normal(2, 9, 8)),
            *(normal(20), normal(2, 20, 8)),
        ],
        ("scan_forward", "scan_backward"),
    ),
    "state_space_dual": Case(
        lambda *t: torch.cat([part.flatten() for part in state_space_dual(*t, return_state=True, chunk=4)]),
        heads_of_states,
        ("dual_forward", "dual_backward"),
    ),
    "state_space_dual of doubles": Case(
        lambda *t: torch.cat([part.flatten() for part in state_space_dual(*t, return_state=True, chunk=4)]),
        lambda: [tensor.double() for tensor in heads_of_states()],
        ("chunked_dual_forward", "chunked_dual_backward"),
    ),
    "wkv": Case(
        wkv,
        lambda: [normal(2, 9, 20), normal(2, 9, 20), normal(20).exp(), normal(20)],
        ("wkv_forward", "wkv_backward"),
    ),
    "wkv from a state": Case(
        lambda *t: torch.cat([part.flatten() for part in wkv(*t, return_state=True)]),
        lambda: [normal(2, 9, 20), normal(2, 9, 20), normal(20).exp(), normal(20), normal(2, 3, 20).abs()],
        ("wkv_forward", "wkv_backward"),
    ),
    "wkv7": Case(
        wkv7,
        lambda: [normal(2, 9, 3, 8), normal(2, 9, 3, 8).sigmoid(), *normal(4, 2, 9, 3, 8).mul(0.3).unbind()],
        ("wkv7_forward", "wkv7_backward"),
    ),
    "wkv7 from a state": Case(
        lambda *t: torch.cat([part.flatten() for part in wkv7(*t, return_state=True)]),
        lambda: [*normal(6, 2, 9, 3, 8).mul(0.3).unbind(), normal(2, 3, 8, 8)],
        ("wkv7_forward", "wkv7_backward"),
    ),
    **{
        f"attention, {implementation}": Case(
            functools.partial(attention, implementation=implementation),
            lambda: [normal(2, 9, 4, 8), normal(2, 9, 2, 8), normal(2, 9, 2, 8)],
            tuple(f"{prefix}attention_{part}" for part in ("forward", "backward")),
        )
        for implementation, prefix in (("kernel", ""), ("tiled", "tiled_"), ("torch", "torch_"))
    },
    **{
        f"attention with all options, {implementation}": Case(
            lambda q, k, v, bias, implementation=implementation: attention(
                q, k, v, True, 5, bias, implementation=implementation
            ),
            lambda: [normal(2, 9, 4, 8), normal(2, 11, 2, 8), normal(2, 11, 2, 8), normal(4, 1, 11)],
            tuple(f"{prefix}attention_{part}" for part in ("forward", "backward")),
        )
        for implementation, prefix in (("kernel", ""), ("tiled", "tiled_"))
    },
    "attention of one query": Case(
        lambda q, k, v, padding: attention(q, k, v, padding=padding),
        lambda: [normal(2, 1, 4, 16), normal(2, 9, 2, 16), normal(2, 9, 2, 16), torch.tensor([0, 3])],
        ("one_query_attention",),
        trains=False,
    ),
    "rotary_attention": Case(
        lambda qkv: rotary_attention(qkv, *(turn(torch.arange(36.0).view(9, 4)) for turn in (torch.cos, torch.sin))),
        lambda: [normal(2, 9, 3, 2, 8)],
        ("rotary_attention_forward", "rotary_attention_backward"),
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def leaves(case: Case) -> list[Tensor]:
    return [t.requires_grad_() if t.is_floating_point() and case.trains else t for t in case.tensors()]


def train(op: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    y = op(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    return [y.detach(), *(torch.autograd.grad(y.square().sum(), wanted) if wanted else ())]


class Calls(TorchDispatchMode):
    """The calls of Verim's operators, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, tuple[object, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "verim":
            self.seen.append((function, args))
        return function(*args, **(kwargs or {}))


def calls_of(case: Case) -> list[tuple[object, tuple[object, ...]]]:
    with Calls() as calls:
        train(case.op, leaves(case))
    return calls.seen


@each_case
def test_training_runs_the_kernels_as_operators(case: Case) -> None:
    assert [function for function, _ in calls_of(case)] == [KERNELS[name].operator for name in case.kernels]


@each_case
def test_an_operator_keeps_what_its_schema_and_its_fake_promise(case: Case) -> None:
    for function, arguments in calls_of(case):
        torch.library.opcheck(function, arguments, test_utils=("test_schema", "test_faketensor"))


@each_case
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does
def test_the_compiled_op_is_the_eager_one(case: Case, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(case.op, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    tensors = leaves(case)
    for got, expected in zip(train(compiled, tensors), train(case.op, tensors), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@each_case
def test_flops_are_counted_as_the_cost_says(case: Case) -> None:
    calls = calls_of(case)
    by_operator = {kernel.operator: kernel for kernel in KERNELS.values()}
    expected = sum(by_operator[function].cost(*arguments).flops for function, arguments in calls)
    with FlopCounterMode(display=False) as counter:
        train(case.op, leaves(case))
    counted = sum(
        count for packet, count in counter.get_flop_counts()["Global"].items() if str(packet).startswith("verim")
    )
    assert counted == expected > 0


def test_every_kernel_has_a_case() -> None:
    assert {name for case in CASES.values() for name in case.kernels} == set(KERNELS)


def test_the_kernels_of_both_devices_take_the_same_arguments() -> None:
    pytest.importorskip("triton")
    folders = [path.parent.name for path in Path(verim.ops.__file__).parent.glob("*/gpu.py")]
    of_cpu = [kernel for kernel in KERNELS.values() if kernel.on("cpu").__module__.endswith(".cpu")]
    kernels = [kernel for kernel in of_cpu if kernel.on("cpu").__module__.split(".")[2] in folders]
    for kernel in kernels:
        on_gpu = getattr(importlib.import_module(kernel.on("cpu").__module__[:-3] + "gpu"), kernel.name)
        assert list(inspect.signature(on_gpu).parameters) == list(inspect.signature(kernel.on("cpu")).parameters)
