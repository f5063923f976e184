"""MinHash: the estimate is right on average and as exact as it says; near copies go, others stay."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.data import near
from verim.data.near import HASHES, bands, found_probability, near_earlier, resemblance, signature


def document(words: list[int]) -> bytes:
    return " ".join(f"w{word}" for word in words).encode()


def shingles(words: list[int]) -> set[tuple[int, ...]]:
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 120), st.integers(0, 60), st.integers(0, 60), st.integers(0, 2**32))
def test_the_estimate_is_near_the_resemblance(common: int, first: int, second: int, seed: int) -> None:
    """Within five standard deviations of Broder's J, computed from the sets themselves."""
    words = np.random.default_rng(seed).integers(10**9, size=common + first + second).tolist()
    one, other = words[: common + first], words[:common] + words[common + first :]
    exact = len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))
    estimate = resemblance(signature(document(one)), signature(document(other)))
    assert abs(estimate - exact) <= 5 * (exact * (1 - exact) / HASHES) ** 0.5 + 1e-9


def test_the_estimate_has_no_bias() -> None:
    """At J = 1/3: mean and scatter over many pairs."""
    random, estimates = np.random.default_rng(1), []
    for _ in range(400):
        words = random.integers(10**9, size=100).tolist()
        one, other = words[:52], words[48:]
        exact = len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))
        assert exact == 0
        one, other = words[:52], words[24:76]  # 24 of 72 shingles in common
        estimates.append(resemblance(signature(document(one)), signature(document(other))))
    spread = (1 / 3 * 2 / 3 / HASHES) ** 0.5
    assert abs(np.mean(estimates) - 1 / 3) < 4 * spread / 400**0.5
    assert abs(np.std(estimates) - spread) < 0.15 * spread


def test_bands_find_pairs_as_often_as_the_formula_says() -> None:
    random, count, rows = np.random.default_rng(2), 4, 6
    found = []
    for _ in range(2000):
        first = random.integers(2**32, size=HASHES, dtype=np.uint32)
        second = np.where(random.random(HASHES) < 0.75, first, random.integers(2**32, size=HASHES, dtype=np.uint32))
        agree = (first == second)[: count * rows].reshape(count, rows)
        found.append(agree.all(axis=1).any())
    expected = found_probability(0.75, count, rows)
    assert abs(np.mean(found) - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_found(threshold: float) -> None:
    count, rows = bands(threshold)
    assert count * rows <= HASHES
    assert found_probability(threshold, count, rows) >= 0.99


def test_letters_and_marks_do_not_count_and_words_do() -> None:
    assert (signature(b"One, two; THREE four-five") == signature(b"one two three\nfour five!")).all()
    assert resemblance(signature(b"one two three four five"), signature(b"one two three four six")) < 0.1
    assert resemblance(signature("今日は天気がいい".encode()), signature("今日は天気が悪い".encode())) < 0.9
    assert resemblance(signature("今日は天気がいいです".encode()), signature("今日は天気がいいよね".encode())) > 0.3
    assert (signature(b"a b") == signature(b"A  B")).all()
    assert resemblance(signature(b"a"), signature(b"a a")) < 0.1


def test_later_copies_are_marked_and_nothing_else() -> None:
    random = np.random.default_rng(3)
    originals = [random.integers(10**9, size=200).tolist() for _ in range(60)]
    changed = [[*words[:100], 1, *words[101:]] for words in originals[:20]]  # 191 of 201 shingles in common
    documents = originals + changed + [originals[5], changed[5]]
    marked = near_earlier(np.stack([signature(document(words)) for words in documents]), 0.8)
    assert marked.tolist() == [False] * 60 + [True] * 22


def test_documents_below_the_threshold_stay() -> None:
    words = np.random.default_rng(4).integers(10**9, size=300).tolist()
    halves = [words[:200], words[100:]]  # J = 96 / 296
    assert not near_earlier(np.stack([signature(document(half)) for half in halves]), 0.6).any()
    assert near_earlier(np.stack([signature(document(half)) for half in halves]), 0.2).tolist() == [False, True]


def test_examples_of_the_docstrings() -> None:
    outcome = doctest.testmod(near)
    assert outcome.attempted
    assert not outcome.failed
