"""The distributions are those of transformers' processors; a draw depends on its own row alone."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.errors import InputError
from verim.generate import Sampling
from verim.generate.draws import Draws, uniforms
from verim.generate.sampler import Sampler, pick, probabilities, tokens_seen

SETTINGS = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in itertools.product((1.0, 0.7, 1.9), (0, 1, 7), (1.0, 0.9, 0.3), (0.0, 0.08))
]


def transformers_probabilities(logits: Tensor, sampling: Sampling, history: Tensor) -> Tensor:
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = processors.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(history, logits)
    logits = processors.TemperatureLogitsWarper(sampling.temperature)(history, logits)
    if sampling.top_k:
        logits = processors.TopKLogitsWarper(sampling.top_k)(history, logits)
    if sampling.top_p < 1:
        logits = processors.TopPLogitsWarper(sampling.top_p)(history, logits)
    if sampling.min_p:
        logits = processors.MinPLogitsWarper(sampling.min_p)(history, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"{s.temperature}-{s.top_k}-{s.top_p}-{s.min_p}")
@pytest.mark.parametrize("vocab", [5, 300])
def test_probabilities_are_those_of_transformers(sampling: Sampling, vocab: int) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(4, vocab, dtype=torch.float64) * torch.tensor([[0.01], [1], [3], [10]])
    expected = transformers_probabilities(logits, sampling, torch.zeros(4, 1, dtype=torch.long))
    torch.testing.assert_close(probabilities(logits, sampling), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    torch.manual_seed(0)
    logits, history = torch.randn(3, 40), torch.randint(0, 40, (3, 25))
    sampling = Sampling(repetition_penalty=penalty)
    seen = tokens_seen(history.tolist(), 40, logits.device)
    expected = transformers_probabilities(logits, sampling, history)
    torch.testing.assert_close(probabilities(logits, sampling, seen), expected)


def draws_of(samplings: Sequence[Sampling], logits: Tensor, drawn: int = 0) -> list[list[int]]:
    """Tokens of each row over the steps of `logits` [steps, rows, vocab]."""
    seen = tokens_seen([[0]] * len(samplings), logits.shape[-1], logits.device)
    sampler = Sampler(samplings, [drawn] * len(samplings), seen)
    return torch.stack([sampler.draw(step) for step in logits], dim=1).tolist()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            Sampling,
            repetition_penalty=st.sampled_from([1.0, 1.5]),
            temperature=st.sampled_from([0, 0.7, 1.0, 3.0]),
            top_k=st.sampled_from([0, 1, 5, 300]),
            top_p=st.sampled_from([1.0, 0.9, 0.2]),
            min_p=st.sampled_from([0.0, 0.1]),
            seed=st.integers(0, 2**63 - 1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_draws_among_others_what_it_draws_alone(samplings: list[Sampling]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(70, len(samplings), 200, dtype=torch.float64)
    together = draws_of(samplings, logits)
    for row, sampling in enumerate(samplings):
        assert draws_of([sampling], logits[:, row : row + 1]) == [together[row]]


def test_draws_go_on_from_where_they_stood() -> None:
    sampling, logits = Sampling(seed=5), torch.randn(90, 1, 50)
    assert draws_of([sampling], logits[30:], drawn=30) == [draws_of([sampling], logits)[0][30:]]


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=1.5, seed=1), Sampling(top_k=6, top_p=0.8, seed=2)], ids=["all", "cut"]
)
def test_draws_follow_the_probabilities(sampling: Sampling) -> None:
    logits, rows = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)), 40_000
    expected = probabilities(logits, sampling)[0]
    sampler = Sampler([sampling], [0])
    drawn = torch.stack([sampler.draw(logits) for _ in range(500)]).flatten()
    many = Sampler([Sampling(**{**sampling.__dict__, "seed": seed}) for seed in range(rows)], [0] * rows)
    for tokens in (drawn, many.draw(logits.expand(rows, -1))):  # along a sequence, and across seeds
        observed = torch.bincount(tokens, minlength=12).double()
        possible = expected > 0
        assert observed[~possible].sum() == 0
        wanted = expected[possible].double() * len(tokens)
        chi_square = ((observed[possible] - wanted).square() / wanted).sum()
        assert chi_square < 32  # eleven degrees of freedom: exceeded once in a thousand times


def test_the_tail_of_a_large_vocabulary_is_drawn_as_often_as_it_should() -> None:
    logits = torch.zeros(1, 200_000)
    logits[0, 0] = 18.0  # the others together: 0.3 %, each one 1.5e-8
    weights = probabilities(logits, Sampling())
    numbers = uniforms(torch.tensor([0]), torch.tensor([0]), 400_000)
    expected = numbers.numel() * (1 - weights[0, 0].item())
    assert abs(int((pick(weights, numbers) > 0).sum()) - expected) < 4 * expected**0.5


def splitmix(seed: int, count: int) -> list[int]:
    """The published generator in whole numbers."""
    outputs = []
    for n in range(1, count + 1):
        value = (seed + n * 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(value ^ (value >> 31))
    return outputs


def test_numbers_are_those_of_splitmix64() -> None:
    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]  # as its authors print
    seeds = [0, 1, 2**63 - 1]
    rows = uniforms(torch.tensor(seeds), torch.tensor([0, 3, 0]), 5)
    for seed, first, row in zip(seeds, (0, 3, 0), rows, strict=True):
        expected = splitmix(splitmix(seed, 1)[0], 8)[first : first + 5]
        assert row.tolist() == [(value >> 12) / 2**52 for value in expected]
    draws = Draws([7], [11], torch.device("cpu"))
    assert [draws.next().item() for _ in range(100)] == uniforms(torch.tensor([7]), torch.tensor([11]), 100)[0].tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", 1e-9),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("max_tokens", 0),
        ("stop", ("a", "")),
        ("stop_tokens", (-1,)),
    ],
)
def test_impossible_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*, expected"):
        Sampling(**{field: value})
