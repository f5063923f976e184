"""Information: entropies, divergences, their identities, and logits that would overflow."""

import math

import torch
from torch import Tensor

from verim import measures, ops
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost, Exactly, Goldens

_COVER = "Cover and Thomas, Elements of Information Theory"
_ROWS, _OUTCOMES = 1000, 16


def _distributions() -> tuple[Tensor, Tensor]:
    """Random rows, some of them with outcomes that are all but impossible."""
    first, second = (5 * torch.randn(_ROWS, _OUTCOMES, dtype=torch.float64) for _ in range(2))
    return first.softmax(-1), second.softmax(-1)


@claim(
    id="information-certain",
    area="information",
    text="The entropy of a deterministic distribution is 0",
    source=f"{_COVER}, section 2.1",
    expected=Exactly(0.0),
    cost=0.1,
    kind="computed",
)
def certain() -> Measurement:
    return Measurement(float(measures.entropy(torch.eye(_OUTCOMES)).max()), "largest of 16 one-hot rows, nats")


@claim(
    id="information-uniform",
    area="information",
    text="No distribution over n outcomes has more entropy than the uniform one, ln n",
    source=f"{_COVER}, theorem 2.6.4",
    expected=Goldens({"uniform": math.log(_OUTCOMES), "random rows above it": 0.0}, tolerance=1e-12),
    cost=0.1,
    kind="computed",
)
def uniform() -> Measurement:
    most = measures.entropy(torch.full((_OUTCOMES,), 1 / _OUTCOMES, dtype=torch.float64))
    p, _ = _distributions()
    above = (measures.entropy(p) > most + 1e-12).sum()
    return Measurement({"uniform": float(most), "random rows above it": float(above)}, f"n = 16, {_ROWS} random rows")


@claim(
    id="information-divergence-positive",
    area="information",
    text="KL(P‖Q) is never negative",
    source=f"{_COVER}, theorem 2.6.3",
    expected=AtLeast(-1e-12),
    cost=0.1,
    kind="computed",
)
def divergence_positive() -> Measurement:
    p, q = _distributions()
    q = torch.lerp(p, q, torch.logspace(-9, 0, _ROWS, dtype=torch.float64)[:, None])  # some all but equal to p
    unclamped = measures.cross_entropy(p, q) - measures.entropy(p)  # kl_divergence itself takes rounding to 0
    least = {"H(P, Q) − H(P)": float(unclamped.min()), "KL": float(measures.kl_divergence(p, q).min())}
    return Measurement(least, f"the least of {_ROWS} random pairs, from all but equal to far apart, nats")


@claim(
    id="information-divergence-asymmetric",
    area="information",
    text="KL(P‖Q) is not KL(Q‖P)",
    source=f"{_COVER}, section 2.3",
    expected=AtLeast(0.1),
    cost=0.1,
    kind="computed",
)
def divergence_asymmetric() -> Measurement:
    p, q = _distributions()
    gap = (measures.kl_divergence(p, q) - measures.kl_divergence(q, p)).abs().mean()
    return Measurement(float(gap), f"mean difference of both, {_ROWS} random pairs, nats")


@claim(
    id="information-decomposition",
    area="information",
    text="H(P, Q) = H(P) + KL(P‖Q)",
    source=f"{_COVER}, section 2.3",
    expected=AtMost(1e-12),
    cost=0.1,
    kind="computed",
)
def decomposition() -> Measurement:
    p, q = _distributions()
    whole = measures.cross_entropy(p, q)
    error = (whole - measures.entropy(p) - measures.kl_divergence(p, q)).abs() / whole
    return Measurement(float(error.max()), f"largest relative difference of {_ROWS} random pairs, float64")


@claim(
    id="information-one-hot",
    area="information",
    text="Cross-entropy with a one-hot target is the negative log-likelihood",
    source="Goodfellow, Bengio and Courville, Deep Learning, section 5.5",
    expected=AtMost(1e-5),
    cost=0.5,
    kind="computed",
)
def one_hot() -> Measurement:
    logits, targets = 5 * torch.randn(_ROWS, _OUTCOMES), torch.randint(_OUTCOMES, (_ROWS,))
    p = torch.nn.functional.one_hot(targets, _OUTCOMES).float()
    expected = -logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    errors = {
        "measures.cross_entropy": measures.cross_entropy(p, measures.Logits(logits)) - expected,
        "measures.surprise": measures.surprise(measures.Logits(logits), targets) - expected,
        "ops.cross_entropy": ops.cross_entropy(logits[None], targets[None]) - expected.mean(),
    }
    largest = {name: float(error.abs().max()) for name, error in errors.items()}
    return Measurement(largest, f"largest difference from −ln p(target) in float64, {_ROWS} rows, float32, nats")


@claim(
    id="information-stable",
    area="information",
    text="With the maximum taken off first, log-sum-exp is exact at logits of ±10 000",
    source="Goodfellow, Bengio and Courville, Deep Learning, section 4.1",
    expected=AtMost(1e-3),
    cost=0.1,
    kind="computed",
)
def stable() -> Measurement:
    logits = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]])
    expected = torch.tensor([20000.0, math.log(2), math.log(2)])
    found = measures.surprise(measures.Logits(logits), torch.ones(3, dtype=torch.long))
    return Measurement(float((found - expected).abs().max()), "largest error of −ln p of three rows, float32, nats")


@claim(
    id="information-naive-overflows",
    area="information",
    text="The naive ln Σ exp overflows, or underflows, at logits of ±10 000",
    source="Goodfellow, Bengio and Courville, Deep Learning, section 4.1",
    expected=Exactly(1.0),
    cost=0.1,
    kind="computed",
)
def naive_overflows() -> Measurement:
    logits = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]])
    broken = ~logits.exp().sum(-1).log().isfinite()
    return Measurement(float(broken.double().mean()), "share of three rows that come out infinite, float32")


@claim(
    id="information-mutual",
    area="information",
    text="Independent variables share no information, equal ones all their entropy",
    source=f"{_COVER}, section 2.4",
    expected=AtMost(1e-12),
    cost=0.1,
    kind="computed",
)
def mutual() -> Measurement:
    p, q = (rows[0] for rows in _distributions())
    errors = {
        "independent": float(measures.mutual_information(p[:, None] * q)),
        "equal": float((measures.mutual_information(p.diag()) - measures.entropy(p)).abs()),
    }
    return Measurement(errors, "I(X; Y), and |I(X; X) − H(X)|, 16 outcomes, nats")


@claim(
    id="information-perplexity",
    area="information",
    text="Who guesses among n equally likely tokens has perplexity n, and log₂ n bits a byte if a token is one",
    source="Jurafsky and Martin, Speech and Language Processing, section 3.2",
    expected=Goldens({"perplexity": 256.0, "bits per byte": 8.0}, relative=1e-12),
    cost=0.1,
    kind="computed",
)
def guessing() -> Measurement:
    nats = measures.entropy(torch.full((256,), 1 / 256, dtype=torch.float64))
    found = {"perplexity": float(measures.perplexity(nats)), "bits per byte": measures.bits_per_byte(float(nats), 1)}
    return Measurement(found, "uniform over 256")
