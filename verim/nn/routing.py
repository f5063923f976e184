"""Routing: which tokens go to which expert, and how evenly."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """The rows that the experts compute, sorted by expert: row i is token `tokens[i]`, weighted with `gates[i]`.

    The first `load[0]` rows are those of expert 0, the next `load[1]` those of expert 1, and so on.
    """

    tokens: Int[Tensor, "rows"]
    gates: Float[Tensor, "rows"]
    load: Int[Tensor, "experts"]


@dataclass(frozen=True)
class Routing:
    """What a layer of experts did with the tokens of its last forward pass. No gradient flows from it.

    - `logits`: of the router.
    - `wanted`: choices that fell on each expert; `load`: tokens that it computed, at most its capacity.
    - `tokens`: the token of every row that was computed.
    """

    logits: Float[Tensor, "tokens experts"]
    wanted: Int[Tensor, "experts"]
    load: Int[Tensor, "experts"]
    tokens: Int[Tensor, "rows"]

    @property
    def dropped(self) -> Int[Tensor, ""]:
        """Choices that found their expert full."""
        return self.wanted.sum() - self.load.sum()

    @property
    def untouched(self) -> Int[Tensor, ""]:
        """Tokens that no expert computed: the residual stream carries them on as they are."""
        computed = torch.zeros(len(self.logits), dtype=torch.bool, device=self.logits.device)
        computed[self.tokens] = True
        return (~computed).sum()

    @property
    def balance_loss(self) -> Float[Tensor, ""]:
        """See `balance_loss`."""
        return balance_loss(self.logits, self.wanted)

    @property
    def z_loss(self) -> Float[Tensor, ""]:
        """See `z_loss`."""
        return z_loss(self.logits)


def balance_loss(logits: Float[Tensor, "tokens experts"], wanted: Int[Tensor, "experts"]) -> Float[Tensor, ""]:
    """experts · Σ_e f_e P_e: 1 where all experts are used alike, up to `experts` where one is used alone.

    f_e is the share of the choices (before any is dropped) that fell on expert e, P_e the mean of its probability
    over the tokens (Fedus et al. 2021, arXiv 2101.03961, eq. 4 to 6 without α). With k choices a token f sums to 1
    here; implementations that let it sum to k have k times this loss.
    """
    share = wanted / wanted.sum().clamp(min=1)
    return logits.shape[-1] * (share * logits.softmax(-1).mean(0)).sum()


def z_loss(logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, ""]:
    """The mean of logsumexp(logits)²: keeps them small (Zoph et al. 2022, ST-MoE, arXiv 2202.08906, eq. 5)."""
    return logits.logsumexp(-1).square().mean()


def token_choice(
    chosen: Int[Tensor, "batch length active"],
    gates: Float[Tensor, "batch length active"],
    experts: int,
    capacity: int | None = None,
) -> tuple[Assignment, Int[Tensor, "experts"]]:
    """The rows of the experts that the tokens chose, and how many choices fell on each expert.

    An expert takes its first `capacity` choices, in the order of their positions (then of the sequences, then of a
    token's own order of choice), so that no token is dropped for one that comes after it in its sequence.
    """
    batch, length, active = chosen.shape
    expert_of = chosen.transpose(0, 1).reshape(-1)
    order = expert_of.argsort(stable=True)
    ranked = expert_of.index_select(0, order)
    ends = torch.searchsorted(ranked, torch.arange(experts, device=ranked.device), right=True)
    wanted = ends.diff(prepend=ends.new_zeros(1))
    load = wanted
    if capacity is not None:
        place = torch.arange(len(order), device=order.device) - (ends - wanted).index_select(0, ranked)
        order = order[place < capacity]
        load = wanted.clamp(max=capacity)
    number = order // active  # of the token, counted position by position
    tokens = number % batch * length + number // batch
    return Assignment(tokens, gates.transpose(0, 1).reshape(-1).index_select(0, order), load), wanted


def expert_choice(scores: Float[Tensor, "tokens experts"], capacity: int) -> Assignment:
    """Every expert takes the `capacity` tokens of the highest score; its gates are the scores."""
    gates, tokens = scores.topk(capacity, dim=0)
    load = tokens.new_full((scores.shape[1],), capacity)
    return Assignment(tokens.t().reshape(-1), gates.t().reshape(-1), load)


def by_threshold(scores: Float[Tensor, "tokens experts"], thresholds: Float[Tensor, "experts"]) -> Assignment:
    """Every expert takes the tokens whose score reaches its threshold: each token is judged by itself."""
    taken: Bool[Tensor, "experts tokens"] = (scores >= thresholds).t()
    expert_of, tokens = taken.nonzero(as_tuple=True)
    return Assignment(tokens, scores[tokens, expert_of], taken.sum(1))
