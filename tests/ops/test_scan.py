"""associative_scan: every algorithm against the definition, for operations that do not commute."""

import doctest
import importlib
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan as torch_scan

from verim.errors import InputError
from verim.ops import associative_scan
from verim.ops.scan import batched
from verim.ops.scan.cost import combines

ALGORITHMS = ["sequential", "hillis_steele", "blelloch", "chunked"]
LENGTHS = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 11, 16, 31, 45])
Combine = Callable[[Any, Any], Any]


def products(left: Tensor, right: Tensor) -> Tensor:
    return left @ right


def affine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The affine map `right` after `left`."""
    return left[0] * right[0], left[1] * right[0] + right[1]


def compositions(left: Tensor, right: Tensor) -> Tensor:
    """The map `right` after `left`, as tables."""
    return right.gather(-1, left)


def small_chunks() -> Any:
    """Sizes at which `chunked` splits sequences of a test into chunks of several lengths, and these again."""
    return patch.multiple(batched, SMALL=24, GRAIN=40, NARROW=3)


def folded(combine: Combine, x: Tensor, dim: int) -> Tensor:
    """The definition: a loop over single places."""
    results: list[Tensor] = []
    for place in x.unbind(dim):
        results.append(combine(results[-1], place) if results else place)
    return torch.stack(results, dim) if results else x.clone()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(length=LENGTHS, seed=st.integers(0, 99), algorithm=st.sampled_from(ALGORITHMS), reverse=st.booleans())
def test_operations_that_do_not_commute(length: int, seed: int, algorithm: str, reverse: bool) -> None:
    torch.manual_seed(seed)
    tables = torch.randint(5, (3, length, 5))
    matrices = torch.randn(2, length, 2, 2, dtype=torch.float64)
    for combine, x in ((compositions, tables), (products, matrices)):
        expected = folded(combine, x.flip(1), 1).flip(1) if reverse else folded(combine, x, 1)
        with small_chunks():
            got = associative_scan(combine, x, 1, reverse, algorithm)
        torch.testing.assert_close(got, expected)
        if length > 1:  # torch's vmaps its combine, which gather and matmul bear
            torch.testing.assert_close(torch_scan(combine, x, 1, reverse, "generic"), got)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(length=LENGTHS, dim=st.integers(0, 2), algorithm=st.sampled_from(ALGORITHMS), reverse=st.booleans())
def test_pairs_along_any_axis_and_layout(length: int, dim: int, algorithm: str, reverse: bool) -> None:
    shape = [2, 3, 5]
    shape[dim] = length
    a, b = torch.rand(2, *shape, dtype=torch.float64)
    turned = a.transpose(0, 2).contiguous().transpose(0, 2), b.repeat_interleave(2, 1)[:, ::2]
    with small_chunks():
        got = associative_scan(affine, turned, dim - 3, reverse, algorithm)
    h, steps = torch.zeros([1]), []
    for decay, drive in list(zip(a.unbind(dim), b.unbind(dim), strict=True))[:: -1 if reverse else 1]:
        h = decay * h + drive
        steps.append(h)
    if steps:
        torch.testing.assert_close(got[1], torch.stack(steps[:: -1 if reverse else 1], dim))
    assert got[0].shape == a.shape


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reverse_scans_the_flipped_elements_and_is_the_suffix_fold_of_the_swapped_operation(algorithm: str) -> None:
    x = torch.randn(13, 2, 2, dtype=torch.float64)
    with small_chunks():
        got = associative_scan(products, x, 0, True, algorithm)
        assert torch.equal(got, associative_scan(products, x.flip(0), 0, False, algorithm).flip(0))
        swapped = associative_scan(lambda left, right: right @ left, x, 0, True, algorithm)
    for place in range(13):
        torch.testing.assert_close(swapped[place], torch.linalg.multi_dot([*x[place:], torch.eye(2).double()]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nested_structures_keep_their_shapes_types_and_names(algorithm: str) -> None:
    class Pair(NamedTuple):
        count: Tensor
        rest: tuple[Tensor, Tensor]

    def combine(left: Pair, right: Pair) -> Pair:
        return Pair(
            left.count + right.count, (torch.minimum(left.rest[0], right.rest[0]), left.rest[1] | right.rest[1])
        )

    given = Pair(torch.ones(9, dtype=torch.int16), (torch.arange(9.0, 0.0, -1.0).reshape(9, 1), torch.eye(9) > 0))
    with small_chunks():
        got = associative_scan(combine, given, 0, algorithm=algorithm)
    assert isinstance(got, Pair) and got.count.dtype is torch.int16
    assert torch.equal(got.count, torch.arange(1, 10, dtype=torch.int16))
    assert torch.equal(got.rest[0], given.rest[0]) and torch.equal(got.rest[1], torch.ones(9, 9).tril() > 0)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.complex64]
)
def test_every_data_type_gives_the_sums_of_whole_numbers_exactly(dtype: torch.dtype) -> None:
    x = torch.arange(14).to(dtype)
    for algorithm in ALGORITHMS:
        assert torch.equal(
            associative_scan(torch.add, x, 0, algorithm=algorithm).to(torch.complex64).real.long(),
            torch.arange(14).cumsum(0),
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_differentiable_twice(algorithm: str) -> None:
    torch.manual_seed(0)
    a, b = (torch.rand(1, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    with patch.multiple(batched, SMALL=4, GRAIN=4):
        for reverse in (False, True):
            scan = lambda a, b: associative_scan(affine, (a, b), -1, reverse, algorithm)  # noqa: B023, E731
            assert torch.autograd.gradcheck(scan, (a, b))
        assert torch.autograd.gradgradcheck(scan, (a, b))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("reverse", [False, True])
def test_what_the_scan_meets_later_has_no_part_in_a_result(algorithm: str, reverse: bool) -> None:
    for place in range(1, 14):
        x = torch.ones(14)
        x[place:] = torch.nan
        with small_chunks():
            y = associative_scan(torch.add, x.flip(0) if reverse else x, 0, reverse, algorithm)
        assert torch.equal((y.flip(0) if reverse else y).isnan(), x.isnan())


def test_compiles_in_one_graph_with_its_gradients() -> None:
    def loss(a: Tensor, b: Tensor) -> Tensor:
        scans = [associative_scan(affine, (a, (a * b)), 1, name == "chunked", name) for name in ALGORITHMS]
        return sum((scan[1] * scan[0]).sum() for scan in scans)

    tensors = [torch.rand(2, 6, 3, requires_grad=True) for _ in range(2)]
    with patch.multiple(batched, SMALL=8, GRAIN=16):
        got, expected = torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors), loss(*tensors)
    torch.testing.assert_close(got, expected)
    for one, other in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("length", [0, 1])
def test_short_sequences_come_back_as_copies_and_nothing_is_combined(length: int) -> None:
    x = torch.ones(2, length)
    for algorithm in ALGORITHMS:
        y = associative_scan(lambda left, right: pytest.fail("called"), x, 1, algorithm=algorithm)
        assert torch.equal(x, y) and (length == 0 or x.data_ptr() != y.data_ptr())
    assert associative_scan(torch.add, torch.ones(0, 5), 1).shape == (0, 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_stated_cost_is_what_runs(algorithm: str) -> None:
    called: list[int] = []

    def observed(left: Tensor, right: Tensor) -> Tensor:
        called.append(left.shape[0])
        return torch.maximum(left, right) + 1  # how many combines a value hangs on, one on the other

    for length, row in itertools.product(range(36), (1, 4)):
        called.clear()
        with small_chunks():
            longest = associative_scan(observed, torch.zeros(length, row), 0, algorithm=algorithm)
            cost = combines(algorithm, length, length * row, row)
        assert (cost.work, cost.calls) == (sum(called), len(called)), (length, row)
        assert cost.depth == (int(longest.max()) if length else 0), (length, row)


@pytest.mark.parametrize("power", range(8))
def test_the_costs_of_powers_of_two(power: int) -> None:
    n = 2**power
    assert combines("sequential", n).work == combines("sequential", n).depth == n - 1
    assert (combines("hillis_steele", n).work, combines("hillis_steele", n).depth) == (n * power - (n - 1), power)
    blelloch = combines("blelloch", n)
    assert (blelloch.work, blelloch.depth) == (2 * (n - 1) - power, 2 * (power - 1) if power > 1 else power)


def test_chunks_fit_the_size_of_the_tensors() -> None:
    assert batched.chunk_length(100, 100, 1) == 1  # little: few calls
    assert batched.chunk_length(64, 64 * batched.GRAIN, batched.GRAIN) == 64  # a place fills a call
    assert batched.chunk_length(4096, 64 * batched.GRAIN, 512) == 64
    assert batched.chunk_length(4100, 64 * batched.GRAIN, 512) == 82  # divides the length
    assert batched.chunk_length(2**26, 2**26, 1) == 2  # narrow: pairs


X = torch.ones(3, 4)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"elements": [X]}, "elements has a list at place 0, expected a tensor"),
    ({"elements": (X, 3)}, "elements has a int at place 1"),
    ({"elements": ()}, "elements is an empty tuple"),
    ({"elements": (X, X[:, :2])}, "tensor 1 of the elements has length 2 along dim 1, expected 4"),
    ({"elements": (X, X[0])}, r"dim is 1, but tensor 1 of the elements has shape \(4,\)"),
    ({"dim": 2}, r"dim is 2, but tensor 0 of the elements has shape \(3, 4\)"),
    ({"dim": -3}, "dim is -3"),
    ({"dim": "rows"}, "dim is 'rows', expected the number of an axis"),
    ({"elements": torch.tensor(1.0), "dim": 0}, r"shape \(\)"),
    ({"algorithm": "best"}, "algorithm is 'best', expected one of sequential, hillis_steele, blelloch, chunked"),
    ({"combine": 3}, "combine is int, expected a function"),
    ({"combine": lambda left, right: (left, right)}, r"combine returned \(tensor, tensor\), expected tensor"),
    ({"combine": lambda left, right: None}, "combine returned NoneType, expected tensor"),
    ({"combine": lambda left, right: left[0]}, r"combine returned shape \(.\,\) for tensor 0"),
    ({"combine": lambda left, right: (left + right).double()}, "combine returned torch.float64 for tensor 0.*float32"),
    ({"combine": lambda left, right: (left + right).to("meta")}, "combine returned a tensor on meta.*expected cpu"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments = {"combine": torch.add, "elements": X, "dim": 1} | change
    with pytest.raises(InputError, match=message):
        associative_scan(**arguments)


def test_the_cost_of_an_unknown_algorithm_is_an_error() -> None:
    with pytest.raises(InputError, match="algorithm is 'best'"):
        combines("best", 0)


@pytest.mark.parametrize("name", ["", ".algorithms", ".banks", ".cost"])
def test_the_examples_of_the_documentation(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module("verim.ops.scan" + name), extraglobs={"torch": torch})
    assert outcome.attempted and not outcome.failed
