"""What is built on associative_scan, against torch, numpy, re and plain loops."""

import doctest
import importlib
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.ops.scan.applications import (
    affine_recurrence,
    compact,
    evaluate_polynomial,
    radix_sort,
    run_automaton,
    tokenize,
)

INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
WIDE_UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
quickly = settings(max_examples=40, deadline=None, derandomize=True)


@quickly
@given(st.sampled_from(INTEGERS), st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=40))
def test_radix_sort_sorts_integers_stably(dtype: torch.dtype, values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.int64).to(dtype)  # cut to the type: all its values occur
    expected, order = torch.sort(x, stable=True)
    got, permutation = radix_sort(x)
    assert torch.equal(got, expected) and torch.equal(permutation, order)


@quickly
@given(st.sampled_from(FLOATS), st.lists(st.floats(width=64) | st.sampled_from([0.0, -0.0, 1.0]), max_size=40))
def test_radix_sort_sorts_floats_stably_with_nan_last(dtype: torch.dtype, values: list[float]) -> None:
    x = torch.tensor([*values, -math.nan], dtype=torch.float64).to(dtype)
    expected, order = torch.sort(x, stable=True)
    got, permutation = radix_sort(x)
    assert torch.equal(permutation, order)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", WIDE_UNSIGNED)
def test_radix_sort_sorts_wide_unsigned_integers(dtype: torch.dtype) -> None:
    x = torch.randint(-(2**63), 2**63 - 1, (50,), generator=torch.Generator().manual_seed(0)).view(dtype)[:50]
    got, permutation = radix_sort(x)
    assert np.array_equal(got.numpy(), np.sort(x.numpy()))
    assert np.array_equal(permutation.numpy(), np.argsort(x.numpy(), stable=True))


def test_radix_sort_of_much_and_of_any_layout() -> None:
    x = torch.randint(-1000, 1000, (2, 5000), generator=torch.Generator().manual_seed(0), dtype=torch.int16)[:, ::2][1]
    got, permutation = radix_sort(x)
    assert torch.equal(got, x.sort().values) and torch.equal(permutation, x.sort(stable=True).indices)
    leaf = torch.tensor([2.0, 1.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(radix_sort(leaf)[0], leaf, torch.tensor([10.0, 20.0, 30.0]))
    assert torch.equal(gradient, torch.tensor([20.0, 10.0, 30.0]))


@quickly
@given(st.lists(st.booleans(), max_size=60), st.sampled_from([(), (2,), (0,), (2, 3)]))
def test_compact_is_boolean_indexing(keep: list[bool], rest: tuple[int, ...]) -> None:
    x = torch.randn(len(keep), *rest, requires_grad=True)
    mask = torch.tensor(keep, dtype=torch.bool)
    got, expected = compact(x, mask), x[mask]
    assert torch.equal(got, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)]
    assert torch.equal(*gradients)


@quickly
@given(st.integers(0, 9), st.sampled_from([((), ()), ((3,), ()), ((), (4,)), ((3, 1), (4,))]), st.integers(0, 99))
def test_polynomials_are_horners(terms: int, batches: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    torch.manual_seed(seed)
    coefficients = torch.randn(*batches[0], terms, dtype=torch.float64)
    x = torch.randn(batches[1], dtype=torch.float64)
    got = evaluate_polynomial(coefficients, x)
    shape = torch.broadcast_shapes(*batches)
    spread = coefficients.expand(*shape, terms).reshape(math.prod(shape), terms)
    expected = [
        np.polyval([0.0, *c], p) for c, p in zip(spread.numpy(), x.expand(shape).flatten().numpy(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64).reshape(shape))


def test_polynomials_of_whole_numbers_are_exact_and_types_are_promoted() -> None:
    assert evaluate_polynomial(torch.tensor([1, 0, -1]), torch.tensor(10**9)) == 10**18 - 1
    assert evaluate_polynomial(torch.tensor([1, 2]), torch.tensor([0.5])).dtype is torch.float32
    leaves = [torch.randn(2, 4, dtype=torch.float64, requires_grad=True), torch.randn(2).double().requires_grad_()]
    assert torch.autograd.gradcheck(evaluate_polynomial, leaves)


@quickly
@given(length=st.integers(0, 40), states=st.integers(1, 6), symbols=st.integers(1, 4), seed=st.integers(0, 99))
def test_automata_go_step_by_step(length: int, states: int, symbols: int, seed: int) -> None:
    torch.manual_seed(seed)
    transitions, text = torch.randint(states, (states, symbols)), torch.randint(symbols, (2, length))
    state, expected = torch.full((2,), states - 1), []
    for symbol in text.unbind(1):
        state = transitions[state, symbol]
        expected.append(state)
    got = run_automaton(transitions, text, states - 1)
    assert torch.equal(got, torch.stack(expected, 1) if expected else text)


GRAMMAR = re.compile(
    r'(?P<name>[^\W\d]\w*)|(?P<number>\d+(?:\.\d*)?)|(?P<space>[ \t\r\n]+)|(?P<comment>#[^\n]*)|(?P<string>"[^"\n]*")'
    r'|(?P<unclosed>"[^"\n]*)|(?P<operator>[=<>!]=?|[\0-\x7f])'
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(st.sampled_from('ab_Zéλ019..==<>!"""##+-*/(){};,  \n\t\\'), max_size=60))
@example('a===b!==1.5.2 "x""y #"z')
def test_the_lexer_is_the_regular_expression(source: str) -> None:
    expected = [(match.lastgroup, match.group()) for match in GRAMMAR.finditer(source)]
    assert tokenize(source) == expected
    assert "".join(token.text for token in tokenize(source)) == source


def test_the_lexer_reads_a_file_and_any_text() -> None:
    source = '# area\nif radius >= 1.5 and name != "unit circle":\n    área = 3.14159 * radius ** 2  # approximately\n'
    words = [token.text for token in tokenize(source) if token.kind not in ("space", "comment")]
    assert words[:8] == ["if", "radius", ">=", "1.5", "and", "name", "!=", '"unit circle"']
    assert words[8:] == [":", "área", "=", "3.14159", "*", "radius", "*", "*", "2"]
    odd = "\0\ud800\U0001f600\x7f"
    assert "".join(token.text for token in tokenize(odd)) == odd


@quickly
@given(length=st.integers(0, 20), channels=st.integers(1, 3), matrices=st.booleans(), start=st.booleans())
def test_the_affine_recurrence_is_the_loop(length: int, channels: int, matrices: bool, start: bool) -> None:
    torch.manual_seed(length)
    A = torch.randn(2, length, channels, *[channels] * matrices, dtype=torch.float64) / 2
    b, initial = torch.randn(2, length, channels).double(), torch.randn(2, channels).double() if start else None
    x, expected = torch.zeros(2, channels).double() if initial is None else initial, []
    for A_t, b_t in zip(A.unbind(1), b.unbind(1), strict=True):
        x = (torch.einsum("bij,bj->bi", A_t, x) if matrices else A_t * x) + b_t
        expected.append(x)
    got = affine_recurrence(A, b, initial)
    torch.testing.assert_close(got, torch.stack(expected, 1) if expected else b)


@pytest.mark.parametrize("matrices", [False, True])
def test_the_affine_recurrence_has_its_gradients(matrices: bool) -> None:
    shapes = (1, 5, 2, *[2] * matrices), (1, 5, 2), (1, 2)
    assert torch.autograd.gradcheck(affine_recurrence, [torch.randn(s).double().requires_grad_() for s in shapes])


WRONG: list[tuple[Callable[..., Any], list[Any], str]] = [
    (radix_sort, [torch.ones(2, 2)], r"x is torch.float32 of shape \(2, 2\), expected a vector"),
    (radix_sort, [torch.ones(2, dtype=torch.complex64)], "x is torch.complex64"),
    (compact, [torch.ones(3), torch.ones(3)], r"keep is torch.float32 of shape \(3,\).*expected torch.bool"),
    (compact, [torch.ones(3), torch.ones(2) > 0], r"keep is torch.bool of shape \(2,\)"),
    (compact, [torch.tensor(3), torch.ones(2) > 0], "keep"),
    (evaluate_polynomial, [torch.tensor(1.0), torch.tensor(1.0)], "coefficients is a scalar"),
    (evaluate_polynomial, [torch.ones(3, 2), torch.ones(2)], r"x has shape \(2,\), which does not broadcast with"),
    (run_automaton, [torch.ones(2), torch.ones(2).long()], "transitions is torch.float32"),
    (run_automaton, [torch.zeros(0, 2).long(), torch.ones(2).long()], "both at least 1"),
    (run_automaton, [torch.full((2, 2), 2), torch.ones(2).long()], "transitions has values from 2 to 2.*0 to 1"),
    (run_automaton, [torch.zeros(2, 2).long(), torch.tensor([-1, 3])], "text has values from -1 to 3.*0 to 1"),
    (run_automaton, [torch.zeros(2, 2).long(), torch.ones(2)], "text is torch.float32"),
    (run_automaton, [torch.zeros(2, 2).long(), torch.ones(2).long(), 2], "start is 2, expected a state from 0 to 1"),
    (affine_recurrence, [torch.ones(2), torch.ones(2)], r"b has shape \(2,\)"),
    (affine_recurrence, [torch.ones(2, 3), torch.ones(2, 3, 4)], r"A is torch.float32 of shape \(2, 3\)"),
    (affine_recurrence, [torch.ones(2, 3, 4).double(), torch.ones(2, 3, 4)], "A is torch.float64"),
    (affine_recurrence, [torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(4)], r"initial is .* \(4,\)"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), WRONG)
def test_wrong_input_is_named(function: Callable[..., Any], arguments: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=f"{function.__name__}: argument (.*){message}"):
        function(*arguments)


@pytest.mark.parametrize("name", ["automata", "lexing", "recurrences", "sorting"])
def test_the_examples_of_the_documentation(name: str) -> None:
    module = importlib.import_module(f"verim.ops.scan.applications.{name}")
    outcome = doctest.testmod(module, extraglobs={"torch": torch})
    assert outcome.attempted and not outcome.failed
