import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.measures import (
    Logits,
    bits_per_byte,
    cross_entropy,
    entropy,
    kl_divergence,
    log_probabilities,
    mutual_information,
    perplexity,
    surprise,
)

seeds = st.integers(0, 2**31)
scales = st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4])
outcomes = st.integers(1, 9)


def logits(seed: int, scale: float, *shape: int) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(seeds, scales, scales, outcomes)
def test_cross_entropy_is_entropy_and_divergence(seed: int, scale: float, other: float, count: int) -> None:
    p, q = logits(seed, scale, 3, count), logits(seed + 1, other, 3, count)
    divergence = kl_divergence(Logits(p), Logits(q))
    torch.testing.assert_close(
        cross_entropy(Logits(p), Logits(q)), entropy(Logits(p)) + divergence, rtol=1e-9, atol=1e-9
    )
    assert bool((divergence >= 0).all()) and bool(divergence.isfinite().all())
    mixed = cross_entropy(p.softmax(-1), Logits(q))
    torch.testing.assert_close(mixed, cross_entropy(Logits(p), Logits(q)), rtol=1e-9, atol=1e-9)
    own = entropy(Logits(p))
    assert bool((own >= 0).all()) and bool((own <= math.log(count) + 1e-9).all())
    torch.testing.assert_close(kl_divergence(Logits(p), Logits(p)), torch.zeros(3, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(seeds, scales, st.floats(-1e4, 1e4))
def test_a_shift_of_all_logits_changes_nothing(seed: int, scale: float, shift: float) -> None:
    p, q = logits(seed, scale, 5), logits(seed + 1, scale, 5)
    for measure in (kl_divergence, cross_entropy):
        found = measure(Logits(p + shift), Logits(q - shift))
        torch.testing.assert_close(found, measure(Logits(p), Logits(q)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy(Logits(p + shift)), entropy(Logits(p)), rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, scales, outcomes)
def test_cross_entropy_of_one_hot_is_negative_log_likelihood(seed: int, scale: float, count: int) -> None:
    x = logits(seed, scale, 4, count)
    labels = torch.arange(4) % count
    expected = torch.nn.functional.cross_entropy(x, labels, reduction="none")
    torch.testing.assert_close(surprise(Logits(x), labels), expected)
    one_hot = torch.nn.functional.one_hot(labels, count).double()
    torch.testing.assert_close(cross_entropy(one_hot, Logits(x)), expected)
    assert entropy(one_hot).tolist() == [0.0] * 4


@settings(max_examples=40, deadline=None)
@given(seeds, scales, outcomes, outcomes)
def test_mutual_information_by_entropies(seed: int, scale: float, rows: int, columns: int) -> None:
    """I(X; Y) = H(X) + H(Y) − H(X, Y), symmetric, and 0 for a product."""
    joint = logits(seed, scale, rows, columns)
    p = joint.flatten().softmax(0).view(rows, columns)
    x, y = p.sum(1), p.sum(0)
    expected = entropy(x) + entropy(y) - entropy(p.flatten())
    torch.testing.assert_close(mutual_information(Logits(joint)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mutual_information(p), mutual_information(p.T), rtol=1e-9, atol=1e-9)
    assert float(mutual_information(x[:, None] * y)) == pytest.approx(0, abs=1e-9)


def test_what_both_know_of_each_other() -> None:
    assert float(mutual_information(torch.eye(4) / 4)) == pytest.approx(math.log(4))
    assert float(mutual_information(torch.full((2, 4, 3), 1 / 12))[1]) == pytest.approx(0, abs=1e-6)


def test_large_logits_where_the_plain_form_overflows() -> None:
    x = torch.tensor([1e4, 0.0, -1e4])
    plain = x.exp() / x.exp().sum()
    assert bool(plain.isnan().any())
    assert float(entropy(Logits(x))) == 0
    assert cross_entropy(Logits(-x), Logits(x)).item() == pytest.approx(2e4)
    assert kl_divergence(Logits(-x), Logits(x)).item() == pytest.approx(2e4)
    assert surprise(Logits(x), torch.tensor(2)).item() == pytest.approx(2e4)


def test_what_cannot_be() -> None:
    """p allows what q excludes: infinite; the other way round it is finite, and log 2."""
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    assert kl_divergence(p, q).item() == math.inf == cross_entropy(p, q).item()
    assert kl_divergence(q, p).item() == pytest.approx(math.log(2))
    excluded = Logits(torch.tensor([0.0, -math.inf]))
    assert entropy(excluded).item() == 0 and kl_divergence(excluded, q).item() == 0


@pytest.mark.parametrize("measure", [kl_divergence, cross_entropy])
def test_gradients(measure: Callable[..., Tensor]) -> None:
    p, q = logits(0, 1.0, 2, 4).requires_grad_(), logits(1, 1.0, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, q: measure(Logits(p), Logits(q)), (p, q))
    assert torch.autograd.gradcheck(lambda p, q: measure(p.softmax(-1), Logits(q)), (p, q))


def test_uniform_has_its_size_as_perplexity() -> None:
    uniform = torch.full((10,), 0.1)
    assert perplexity(entropy(uniform)).item() == pytest.approx(10)


def test_uniform_bytes_cost_eight_bits() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match=r"sums from 3 to 3, .* wrap logits as Logits"):
        entropy(torch.tensor([1.0, 2.0]))
    with pytest.raises(InputError, match="expected 0 or more"):
        entropy(torch.tensor([1.5, -0.5]))
    with pytest.raises(InputError, match="expected 0 or more"):
        entropy(torch.tensor([math.nan, 1.0]))
    with pytest.raises(InputError, match="NaN or infinity"):
        entropy(Logits(torch.tensor([math.nan, 1.0])))
    with pytest.raises(InputError, match="got 2 and 3 outcomes"):
        kl_divergence(Logits(torch.zeros(2)), Logits(torch.zeros(3)))
    with pytest.raises(InputError, match="with values from 0 to 1"):
        surprise(Logits(torch.zeros(2)), torch.tensor(2))
    with pytest.raises(InputError, match=r"torch\.int64"):
        log_probabilities(torch.tensor([1, 0]))
    with pytest.raises(InputError, match="at least 2"):
        mutual_information(torch.tensor([1.0]))
