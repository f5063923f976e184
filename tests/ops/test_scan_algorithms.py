"""The scans as taught: what they count, and the model of memory banks on what they touch."""

import itertools
import math
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verim.errors import InputError
from verim.ops.scan.algorithms import ObservedScan, blelloch, hillis_steele, sequential
from verim.ops.scan.banks import NONE, Banks, Conflicts, access_conflicts, conflicts, strided


def all_three(text: str) -> list[ObservedScan]:
    """Concatenation does not commute."""
    return [sequential(add, text), hillis_steele(add, text), blelloch(add, text, "")]


@pytest.mark.parametrize("power", range(11))
def test_powers_of_two_cost_what_the_books_say(power: int) -> None:
    n = 2**power
    one, two, three = sequential(add, range(n)), hillis_steele(add, range(n)), blelloch(add, range(n), 0)
    assert (one.work, two.work, three.work) == (n - 1, n * power - (n - 1), 2 * (n - 1))
    assert (one.depth, two.depth, three.depth) == (n - 1, power, 2 * power)


@given(st.text(alphabet="abc", max_size=40))
def test_any_length_and_an_operation_that_does_not_commute(text: str) -> None:
    prefixes = tuple(itertools.accumulate(text))
    for scan in all_three(text):
        assert scan.inclusive == prefixes
        assert scan.total == (text or None)
    *_, exclusive = all_three(text)
    assert exclusive.result == tuple(text[:i] for i in range(len(text)))


@given(st.integers(2, 200))
def test_other_lengths_cost_the_next_power_of_two_or_less(n: int) -> None:
    size = 1 << (n - 1).bit_length()
    one, two, three = sequential(add, range(n)), hillis_steele(add, range(n)), blelloch(add, range(n), 0)
    assert one.work == n - 1 and two.depth == size.bit_length() - 1
    assert (three.work, three.depth) == (2 * (size - 1), 2 * (size.bit_length() - 1))


def test_the_work_counted_is_the_calls_made() -> None:
    calls: list[int] = []

    def counting(left: int, right: int) -> int:
        calls.append(1)
        return left + right

    for run in (lambda: sequential(counting, range(13)), lambda: hillis_steele(counting, range(13))):
        calls.clear()
        assert run().work == len(calls)
    calls.clear()
    assert blelloch(counting, range(13), 0).work == len(calls)


def test_the_trace_holds_every_access_in_order() -> None:
    up_first, *_, down_last = blelloch(add, [1, 2, 3, 4], 0).steps
    assert up_first.accesses == ((0, 2), (1, 3), (1, 3)) and up_first.combines == 2
    assert down_last.accesses == ((0, 2), (1, 3), (0, 2), (1, 3)) and down_last.combines == 2
    first, second = hillis_steele(add, [1, 2, 3]).steps
    assert first.accesses == ((0, 1, 2), (0, 1), (3, 4, 5))
    assert second.accesses == ((3, 4, 5), (3,), (0, 1, 2)) and second.combines == 1
    assert sequential(add, [1, 2]).steps[0].accesses == ((0,), (1,), (1,))


def test_stride_32_is_a_32_way_conflict_and_padding_removes_it() -> None:
    assert strided(32) == Conflicts(turns=32, ideal=1, worst=32)
    assert strided(32).lost == 31 / 32 == 0.96875
    assert strided(32, padded=True) == Conflicts(1, 1, 1) and strided(32, padded=True).lost == 0


@pytest.mark.parametrize("stride", range(1, 65))
def test_a_stride_conflicts_by_its_common_divisor_with_the_banks(stride: int) -> None:
    assert strided(stride).worst == math.gcd(stride, 32)
    if stride & (stride - 1) == 0:
        assert strided(stride, padded=True).worst == 1


def test_one_word_for_all_is_handed_to_all_at_once() -> None:
    assert strided(0) == Conflicts(1, 1, 1)
    assert access_conflicts([(0, 32, 0, 32)]) == Conflicts(2, 1, 2)


def test_the_sizes_of_the_banks_count() -> None:
    old = Banks(count=16, warp=16)  # the GPUs of the chapter
    assert strided(16, old).worst == 16 and strided(16, old, padded=True).worst == 1
    assert strided(1, element_bytes=8) == Conflicts(2, 2, 2)  # two words an element: two turns at best
    assert strided(1, element_bytes=1) == Conflicts(1, 1, 1)  # four elements a word
    assert strided(16, Banks(width=8), element_bytes=8).worst == 16
    assert access_conflicts([range(64)]) == Conflicts(2, 2, 1)  # two warps, a turn each


def test_padding_frees_the_tree_from_all_conflicts() -> None:
    scan = blelloch(add, range(4096), 0)
    plain, padded = conflicts(scan), conflicts(scan, padded=True)
    assert len(plain) == len(padded) == len(scan.steps) == 25  # twelve up, the root, twelve down
    assert [step.worst for step in plain[:6]] == [2, 4, 8, 16, 32, 32]
    assert all(step.worst == 1 and step.lost == 0 for step in padded)
    whole = sum(plain, start=NONE)
    assert whole.worst == 32 and whole.turns > 5 * sum(padded, start=NONE).turns
    assert sum(conflicts(hillis_steele(add, range(4096))), start=NONE).worst == 1  # neighbours touch neighbours


@given(st.lists(st.lists(st.integers(0, 200), max_size=70), max_size=3), st.booleans())
def test_turns_lie_between_the_ideal_and_one_for_each_thread(accesses: list[list[int]], padded: bool) -> None:
    got = access_conflicts([tuple(access) for access in accesses], padded=padded)
    assert got.ideal <= got.turns <= sum(map(len, accesses)) and 0 <= got.lost < 1


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="argument count is 0, expected at least 1"):
        Banks(count=0)
    with pytest.raises(InputError, match="argument stride is -1"):
        strided(-1)
    with pytest.raises(InputError, match="address -2 is negative"):
        access_conflicts([(0, -2)])
    with pytest.raises(InputError, match="element_bytes is 0"):
        access_conflicts([(0,)], element_bytes=0)
