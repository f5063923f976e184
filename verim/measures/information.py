"""Information: surprise, entropy, cross-entropy, divergence, mutual information, perplexity, bits a byte.

In nats (natural logarithms), after Cover & Thomas (Elements of Information Theory, 2nd edition, chapter 2). A
distribution is a tensor whose last dimension holds probabilities, or `Logits`, the same before a softmax; both kinds
may be mixed in one call. From logits nothing is exponentiated before its maximum is taken off, so that ±1e4 do no
harm; 0 ln 0 is 0. Gradients flow through all of it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.errors import InputError

TOLERANCE = 1e-3
"""How far from 1 the sum of probabilities may be: half precision comes so far."""


class Logits(NamedTuple):
    """Logarithms of probabilities up to a constant a row: p = softmax(values)."""

    values: Float[Tensor, "*batch outcomes"]


Distribution = Tensor | Logits


def log_probabilities(distribution: Distribution) -> Float[Tensor, "*batch outcomes"]:
    """ln p, normalised; −∞ where p is 0.

    Raises `InputError` for probabilities that are negative, not finite, or do not sum to 1 within `TOLERANCE`, and for
    logits that hold NaN or +∞ or are all −∞.
    """
    if isinstance(distribution, Logits):
        logits = distribution.values
        peak = _floats("logits", logits).amax(-1)
        if not bool(peak.isfinite().all()):
            raise InputError("logits hold NaN or infinity, or a row of them is -inf: expected a finite largest one")
        return logits.log_softmax(-1)
    probabilities = _floats("probabilities", distribution)
    total = probabilities.sum(-1)
    if not bool((probabilities >= 0).all()) or not bool(((total - 1).abs() <= TOLERANCE).all()):
        raise InputError(
            f"probabilities: got values from {float(probabilities.min()):.3g} and sums from {float(total.min()):.6g} "
            f"to {float(total.max()):.6g}, expected 0 or more and sums of 1; wrap logits as Logits(values)"
        )
    return probabilities.log()


def surprise(distribution: Distribution, outcomes: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """−ln p(outcome): what seeing `outcomes` tells, the negative log-likelihood; ∞ for the impossible."""
    logs = log_probabilities(distribution)
    if outcomes.shape != logs.shape[:-1] or bool(((outcomes < 0) | (outcomes >= logs.shape[-1])).any()):
        raise InputError(
            f"outcomes: got shape {tuple(outcomes.shape)}, expected {tuple(logs.shape[:-1])} with values from 0 to "
            f"{logs.shape[-1] - 1}"
        )
    return -logs.gather(-1, outcomes[..., None].long())[..., 0]


def entropy(distribution: Distribution) -> Float[Tensor, "*batch"]:
    """H(p) = −Σ p ln p: from 0, where one outcome is certain, to ln(outcomes)."""
    logs = log_probabilities(distribution)
    return _expected(logs, -logs)


def cross_entropy(p: Distribution, q: Distribution) -> Float[Tensor, "*batch"]:
    """H(p, q) = −Σ p ln q = H(p) + KL(p‖q): the surprise of who believes `q` where `p` holds.

    >>> cross_entropy(torch.tensor([0.0, 1.0]), Logits(torch.tensor([1e4, -1e4]))).item()
    20000.0
    """
    return _expected(*_pair(p, q, lambda logs_p, logs_q: -logs_q))


def kl_divergence(p: Distribution, q: Distribution) -> Float[Tensor, "*batch"]:
    """KL(p‖q) = Σ p ln(p / q) ≥ 0, 0 where both are equal; ∞ where `q` excludes what `p` allows.

    Not symmetric. Fitting q by KL(p‖q), *forward*, makes it cover all of p; by KL(q‖p), *reverse*, makes it seek one
    mode: exchange the arguments.
    """
    return _expected(*_pair(p, q, torch.sub)).clamp_min(0)  # rounding may take it below


def mutual_information(joint: Distribution) -> Float[Tensor, "*batch"]:
    """I(X; Y) = KL(p(x, y) ‖ p(x) p(y)) of a joint distribution over the last two dimensions [x, y].

    0 where both are independent, at most the smaller of their entropies.
    """
    values = joint.values if isinstance(joint, Logits) else joint
    if values.dim() < 2:
        raise InputError(f"joint: got {values.dim()} dimensions, expected at least 2, the last two are x and y")
    flat = values.flatten(-2)
    logs = log_probabilities(Logits(flat) if isinstance(joint, Logits) else flat).unflatten(-1, values.shape[-2:])
    product = logs.logsumexp(-1, keepdim=True) + logs.logsumexp(-2, keepdim=True)
    ratio = torch.where(logs > -math.inf, logs - product, 0)  # −∞ less −∞ counts nothing
    return _expected(logs.flatten(-2), ratio.flatten(-2)).clamp_min(0)


def perplexity(nats: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """exp(nats a token): among how many equally likely tokens the model might as well have guessed."""
    return nats.exp()


def bits_per_byte(nats: float, bytes: float) -> float:
    """Total cross-entropy in nats over the bytes it encodes, in bits a byte: nats / (bytes · ln 2).

    Comparable between models whatever their tokens are.
    """
    return nats / (bytes * math.log(2))


def _floats(name: str, values: Tensor) -> Tensor:
    if not values.is_floating_point() or not values.dim() or not values.shape[-1]:
        raise InputError(
            f"{name}: got {values.dtype} of shape {tuple(values.shape)}, expected floats [..., outcomes], at least one"
        )
    return values


def _pair(p: Distribution, q: Distribution, values: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """ln p and what is to be averaged over it."""
    logs_p, logs_q = log_probabilities(p), log_probabilities(q)
    if logs_p.shape[-1] != logs_q.shape[-1]:
        raise InputError(f"p and q: got {logs_p.shape[-1]} and {logs_q.shape[-1]} outcomes, expected as many")
    return logs_p, values(logs_p, logs_q)


def _expected(logs: Tensor, values: Tensor) -> Tensor:
    """Σ p · values, counting only what is possible: elsewhere the values may be infinite."""
    possible = logs > -math.inf
    return (logs.exp() * torch.where(possible, values, 0)).sum(-1)
