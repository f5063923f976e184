"""Routing: which tokens go to which expert, and how evenly."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """What the experts compute, sorted by expert: row i is token `tokens[i]`.

    The first `load[0]` rows are those of expert 0, the next `load[1]` those of expert 1, and so on. The rows of token
    t are `by_token[starts[t] : starts[t + 1]]`.
    """

    tokens: Int[Tensor, "rows"]
    load: Int[Tensor, "experts"]
    by_token: Int[Tensor, "rows"]
    starts: Int[Tensor, "tokens"]

    @classmethod
    def sorted_by_expert(cls, tokens: Int[Tensor, "rows"], load: Int[Tensor, "experts"], count: int) -> "Rows":
        """Of `count` tokens."""
        by_token = tokens.argsort(stable=True)
        numbers = torch.arange(count, device=tokens.device)
        return cls(tokens, load, by_token, torch.searchsorted(tokens.index_select(0, by_token), numbers))

    @cached_property
    def parts(self) -> list[slice]:
        """The range of every expert's rows."""
        ends = list(accumulate(self.load.tolist()))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


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
    chosen: Int[Tensor, "tokens active"],
    experts: int,
    capacity: int | None = None,
    length: int = 1,
) -> tuple[Rows, Int[Tensor, "rows"], Int[Tensor, "experts"]]:
    """The rows of the experts that the tokens chose, the number of each row's choice, and the choices of each expert.

    An expert takes its first `capacity` choices in the order of their positions in sequences of `length` (then of the
    sequences, then of a token's own choices), so that no token is dropped for one that comes after it.
    """
    tokens, active = chosen.shape
    expert_of = chosen.reshape(-1)
    wanted = torch.bincount(expert_of, minlength=experts)
    if capacity is None:
        choices = expert_of.argsort(stable=True)
        starts = torch.arange(0, tokens * active, active, device=chosen.device)
        return Rows(choices // active, wanted, choices.argsort(), starts), choices, wanted
    numbers = torch.arange(tokens * active, device=chosen.device)
    by_position = numbers.view(-1, length, active).transpose(0, 1).reshape(-1)
    choices = by_position[expert_of[by_position].argsort(stable=True)]
    place = numbers - (wanted.cumsum(0) - wanted)[expert_of[choices]]
    choices = choices[place < capacity]
    return Rows.sorted_by_expert(choices // active, wanted.clamp(max=capacity), tokens), choices, wanted


def expert_choice(
    scores: Float[Tensor, "tokens experts"], capacity: int
) -> tuple[Rows, Float[Tensor, "experts capacity"]]:
    """Every expert takes the `capacity` tokens of the highest score; and those scores, falling."""
    best, tokens = scores.topk(capacity, dim=0)
    load = tokens.new_full((scores.shape[1],), capacity)
    return Rows.sorted_by_expert(tokens.t().reshape(-1), load, len(scores)), best.t()


def by_threshold(
    scores: Float[Tensor, "tokens experts"], thresholds: Float[Tensor, "experts"]
) -> tuple[Rows, Float[Tensor, "rows"]]:
    """Every expert takes the tokens whose score reaches its threshold: each is judged by itself. And those scores."""
    taken: Bool[Tensor, "experts tokens"] = (scores >= thresholds).t()
    expert_of, tokens = taken.nonzero(as_tuple=True)
    return Rows.sorted_by_expert(tokens, taken.sum(1), len(scores)), scores[tokens, expert_of]
