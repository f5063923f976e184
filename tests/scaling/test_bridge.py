"""From one count of parameters to another, and why Kaplan and Hoffmann found other exponents."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from verim.errors import InputError
from verim.models import LanguageModel, architecture_config
from verim.scaling.bridge import COUNTS, Bridge, Count, local_exponent, optimal_size
from verim.scaling.published import LAWS, published_law


@given(
    st.floats(1, 1e15), st.sampled_from(COUNTS), st.sampled_from(COUNTS), st.integers(1, 200_000), st.floats(1, 200),
    st.booleans(),
)  # fmt: skip
def test_every_count_leads_back(
    N: float, given: Count, wanted: Count, vocabulary: int, aspect: float, tied: bool
) -> None:
    bridge = Bridge(vocabulary, aspect, tied)
    assert_allclose(bridge.convert(bridge.convert(N, given, wanted), wanted, given), N, rtol=1e-9)
    assert bridge.convert(N, "blocks", "non_embedding") >= N
    assert bridge.convert(N, "non_embedding", "total") >= N * (1 - 1e-12)


def test_the_formula_of_pearce_and_song() -> None:
    for blocks in (1e5, 1e7, 1e9):
        assert_allclose(Bridge().convert(blocks, "blocks", "total"), blocks + 47491 * blocks ** (1 / 3), rtol=1e-5)
    # a tied head is the one matrix there is, and counts; an untied one stands beside the embedding
    assert Bridge().convert(1e8, "total", "non_embedding") == pytest.approx(1e8)
    untied = Bridge(tied=False)
    total, shown = untied.convert(1e8, "blocks", "total"), untied.convert(1e8, "blocks", "non_embedding")
    assert_allclose(total - shown, shown - 1e8, rtol=1e-9)


def test_a_model_of_ours_is_counted_as_it_is() -> None:
    config = architecture_config("transformer", width=64)
    model = LanguageModel(config)
    embedding = config.vocab * config.width
    total = sum(parameter.numel() for parameter in model.parameters())
    tied = len([1 for parameter in model.parameters() if parameter.shape == (config.vocab, config.width)]) == 1
    blocks = total - embedding * (1 if tied else 2)
    bridge = Bridge(config.vocab, aspect=12 * config.width**3 / blocks, tied=tied)  # the shape that has this width
    assert_allclose(bridge.convert(blocks, "blocks", "total"), total, rtol=1e-9)


@pytest.mark.parametrize(("name", "exponent"), [("chinchilla", 0.75), ("epoch", 0.79)])
def test_hoffmanns_surface_in_kaplans_count_has_kaplans_exponent(name: str, exponent: float) -> None:
    # Pearce & Song: 0.74 to 0.78 over Kaplan's sizes of 768 to 1.5e9, near Kaplan's 0.73
    law = published_law(name)
    C = np.geomspace(1e12, 1e22, 60)
    N = np.array([optimal_size(law, "total", budget, "blocks") for budget in C])
    within = (N > 768) & (N < 1.5e9)
    slope = np.polyfit(np.log(C[within]), np.log(N[within]), 1)[0]
    assert slope == pytest.approx(exponent, abs=0.01)
    # and the difference goes where models are large
    large, own = local_exponent(law, "total", 1e26, "blocks"), local_exponent(law, "total", 1e26, "total")
    assert_allclose((large, own), law.law.exponents.a, atol=2e-3)


def test_the_same_count_is_the_laws_own_optimum() -> None:
    for name in ("chinchilla", "epoch"):
        for C in (1e18, 1e22, 1e26):
            assert_allclose(optimal_size(LAWS[name], "total", C, "total"), LAWS[name].optimum(C).N, rtol=1e-4)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="vocabulary: got 0"):
        Bridge(vocabulary=0)
    with pytest.raises(InputError, match="aspect: got nan"):
        Bridge(aspect=math.nan)
    with pytest.raises(InputError, match="N is -1"):
        Bridge().convert(-1.0, "total", "blocks")
    with pytest.raises(InputError, match="wanted: got 'active', expected one of total, non_embedding, blocks"):
        Bridge().convert(1e6, "total", "active")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="C is 0"):
        optimal_size(LAWS["epoch"], "total", 0.0, "blocks")
