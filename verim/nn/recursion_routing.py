"""Which tokens take another recursion: routers that give every token a depth of its own."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from verim.errors import InputError
from verim.nn.auxiliary import add_auxiliary_loss
from verim.nn.linear import Linear
from verim.nn.routing import balance_loss, z_loss
from verim.ops.precision import widen, without_autocast

_ROUNDING = 1e-9
"""Capacities are quotients of small numbers: a product of one that exceeds a whole number by less is it."""

Gate = Literal["sigmoid", "tanh"]
Decision = Literal["loss", "router"]
Balance = Literal["loss", "bias"]


@dataclass(frozen=True)
class Tokens:
    """Tokens on their way through the recursions: `place` is their place in the chunk, row · length + column, rising.

    `seen`: positions of each row before the chunk.
    """

    place: Int[Tensor, "tokens"]
    length: int
    seen: Int[Tensor, "rows"]

    @property
    def rows(self) -> Int[Tensor, "tokens"]:
        return self.place // self.length

    @property
    def positions(self) -> Int[Tensor, "tokens"]:
        return self.seen[self.rows] + self.place % self.length

    def counts(self) -> Int[Tensor, "rows"]:
        """Of each row."""
        return torch.bincount(self.rows, minlength=len(self.seen))

    def select(self, index: Int[Tensor, "chosen"] | None) -> "Tokens":
        return self if index is None else Tokens(self.place[index], self.length, self.seen)


@dataclass(frozen=True)
class Chosen:
    """The tokens that take a recursion, by their number among those that came to it (None: all), and their gates."""

    index: Int[Tensor, "chosen"] | None
    gates: Float[Tensor, "chosen 1"]


class Router(nn.Module, ABC):
    """Decides for one recursion after the other which tokens take it.

    `sampling_accuracy`: after a call in training mode, the share of tokens, recursion by recursion, about which the
    rule of decoding would have decided as training did.
    """

    sampling_accuracy: list[float]

    @abstractmethod
    def begin(self, x: Float[Tensor, "tokens width"]) -> Tensor | None:
        """What is decided of all tokens before the first recursion."""

    @abstractmethod
    def choose(
        self,
        recursion: int,
        x: Float[Tensor, "tokens width"],
        tokens: Tokens,
        decided: Tensor | None,
        taken: Int[Tensor, "rows"],
    ) -> Chosen:
        """Which of the `tokens` with hidden states `x` take `recursion`; before this chunk `taken` of each row did."""

    @abstractmethod
    def onward(
        self,
        x: Float[Tensor, "tokens width"],
        recursion: Int[Tensor, "tokens"],
        after: Int[Tensor, "tokens"],
        taken: Int[Tensor, "tokens"],
        decided: Tensor | None,
    ) -> tuple[Bool[Tensor, "tokens"], Float[Tensor, "tokens 1"]]:
        """`choose` of the next token of many sequences, each before the recursion of its own; and the gates of all.

        `after`: positions of its sequence with it; `taken`: how many before it took that recursion; `decided`: its
        row of what `begin` said. In evaluation mode.
        """

    @abstractmethod
    def share(self, recursion: int) -> float:
        """The part of a sequence's tokens that takes a recursion: the most, or with balanced loads the mean."""

    @abstractmethod
    def most(self, recursion: int, length: int) -> int:
        """How many of a sequence's first `length` tokens can have taken a recursion, in evaluation mode."""


@dataclass(frozen=True)
class ExpertChoiceConfig:
    """Recursion r takes the ceil(capacity_r · length) tokens of the largest score among those that took the one before.

    Bae et al. 2025 (arXiv 2507.10524), section 2.2.1, "expert-choice routing" with "hierarchical filtering":
    H ← H + α G(θ_rᵀ H) F(H) for the tokens that are taken, F the shared blocks, G the `gate`; the others leave.
    CHOOSING IS NOT CAUSAL IN TRAINING MODE: whether a token is taken depends on those after it. In evaluation mode a
    token is judged by itself: it goes on where its probability exceeds `threshold`. That probability is sigmoid of
    the score, taught by a cross-entropy with what was chosen (`decision` "loss"), or that of a router of its own, which
    learns to foretell the choice and teaches the rest nothing ("router").

    - `capacities`: of each recursion, falling; empty: N/N, (N - 1)/N, ... 1/N.
    - `alpha`, `gate`: of the update. `coefficient`: of the auxiliary loss. `z`: of the mean squared score (0: none).
    - `bounded`: in evaluation mode too a recursion takes at most ceil(capacity · n) of any first n tokens of a
      sequence, the first that pass, so that the state never takes more room than `capacities` say.
    """

    capacities: tuple[float, ...] = ()
    alpha: float = 0.1
    gate: Gate = "sigmoid"
    decision: Decision = "loss"
    coefficient: float = 0.001
    threshold: float = 0.5
    bounded: bool = True
    z: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "capacities", tuple(self.capacities))
        falls = all(after < before for before, after in zip(self.capacities, self.capacities[1:], strict=False))
        if self.capacities and not (self.capacities[0] == 1 and falls and self.capacities[-1] > 0):
            raise InputError(
                f"capacities: got {self.capacities}, expected a number for each recursion that begins with 1 and falls "
                "and stays above 0"
            )
        for name, known in (("gate", Gate), ("decision", Decision)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(get_args(known))}")
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold: got {self.threshold}, expected a probability between 0 and 1, both excluded")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha: got {self.alpha}, expected a positive number")
        for name in ("coefficient", "z"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a finite number of at least 0")

    def check(self, recursions: int) -> None:
        if self.capacities and len(self.capacities) != recursions:
            raise InputError(
                f"capacities: got {len(self.capacities)} for {recursions} recursions, expected as many, or none"
            )

    def build(self, width: int, recursions: int) -> "ExpertChoice":
        return ExpertChoice(self, width, recursions)


class ExpertChoice(Router):
    """See `ExpertChoiceConfig`. The first recursion takes all."""

    def __init__(self, config: ExpertChoiceConfig, width: int, recursions: int) -> None:
        super().__init__()
        self.config = config
        self.capacities = config.capacities or tuple((recursions - r) / recursions for r in range(recursions))
        self.score = _score(width, recursions)
        self.foreteller = _score(width, recursions - 1) if config.decision == "router" and recursions > 1 else None
        self.sampling_accuracy = []

    def begin(self, x: Float[Tensor, "tokens width"]) -> None:
        self.sampling_accuracy = []

    def choose(
        self,
        recursion: int,
        x: Float[Tensor, "tokens width"],
        tokens: Tokens,
        decided: Tensor | None,
        taken: Int[Tensor, "rows"],
    ) -> Chosen:
        scores = _wide(x, self.score.weight[recursion])
        gates = self._gates(scores).to(x.dtype)[:, None]
        if recursion == 0:
            return Chosen(None, gates)
        logits = scores
        if self.foreteller is not None:
            logits = _wide(x.detach(), self.foreteller.weight[recursion - 1])
        if self.training:
            index = self._best(recursion, scores, logits, tokens)
        else:
            index = self.passing(recursion, logits.sigmoid() > self.config.threshold, tokens, taken)
        return Chosen(index, gates.index_select(0, index))

    def onward(
        self,
        x: Float[Tensor, "tokens width"],
        recursion: Int[Tensor, "tokens"],
        after: Int[Tensor, "tokens"],
        taken: Int[Tensor, "tokens"],
        decided: Tensor | None,
    ) -> tuple[Bool[Tensor, "tokens"], Float[Tensor, "tokens 1"]]:
        scores = _wide(x, self.score.weight)
        own = scores.gather(1, recursion[:, None])
        logits = own
        if self.foreteller is not None:
            logits = _wide(x, self.foreteller.weight).gather(1, (recursion[:, None] - 1).clamp(min=0))
        passes = logits[:, 0].sigmoid() > self.config.threshold
        if self.config.bounded:
            passes &= taken < self._room(recursion, after)
        return passes | (recursion == 0), self._gates(own).to(x.dtype)

    def _gates(self, scores: Tensor) -> Tensor:
        return self.config.alpha * (scores.sigmoid() if self.config.gate == "sigmoid" else scores.tanh())

    def _room(self, recursion: int | Int[Tensor, "*any"], after: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """How many of its first `after` tokens a sequence may send to a recursion."""
        capacities = torch.tensor(self.capacities, dtype=torch.float64, device=after.device)[recursion]
        return (capacities * after - _ROUNDING).ceil().long()

    def _best(self, recursion: int, scores: Tensor, logits: Tensor, tokens: Tokens) -> Int[Tensor, "chosen"]:
        """The tokens of the largest scores of every row; adds the auxiliary losses."""
        by_row = scores.view(len(tokens.seen), -1)
        best = by_row.topk(self._capacity(recursion, tokens.length), dim=1).indices.sort(dim=1).values
        wanted = torch.zeros_like(by_row).scatter_(1, best, 1.0).flatten()
        loss = binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype))
        add_auxiliary_loss(loss if self.foreteller is not None else self.config.coefficient * loss)
        if self.config.z:
            add_auxiliary_loss(self.config.z * scores.square().mean())
        right = (logits.detach().sigmoid() > self.config.threshold) == wanted.bool()
        self.sampling_accuracy.append(float(right.float().mean()))
        first = torch.arange(0, by_row.numel(), by_row.shape[1], device=best.device)
        return (best + first[:, None]).flatten()

    def passing(
        self, recursion: int, willing: Bool[Tensor, "tokens"], tokens: Tokens, taken: Int[Tensor, "rows"]
    ) -> Int[Tensor, "chosen"]:
        """The `willing` tokens for which their row's recursion has room.

        With room c_t after t positions, p_t = 1 for the willing and n_0 = `taken`, it holds
        n_t = min(n_{t-1} + p_t, c_t) = P_t + min(n_0, min over s ≤ t of c_s - P_s), P the running sum of p (c never
        falls).
        """
        if not self.config.bounded:
            return willing.nonzero()[:, 0]
        rows, length = len(tokens.seen), tokens.length
        asked = torch.zeros(rows * length, dtype=torch.int64, device=willing.device)
        asked[tokens.place] = willing.long()
        sums = asked.view(rows, length).cumsum(1)
        after = tokens.seen[:, None] + torch.arange(1, length + 1, device=willing.device)
        room = self._room(recursion, after)
        held = sums + torch.minimum(taken[:, None], (room - sums).cummin(1).values)
        grown = held.diff(dim=1, prepend=taken[:, None]).flatten()
        return (grown[tokens.place] > 0).nonzero()[:, 0]

    def share(self, recursion: int) -> float:
        return self.capacities[recursion]

    def most(self, recursion: int, length: int) -> int:
        return self._capacity(recursion, length) if self.config.bounded else length

    def _capacity(self, recursion: int, length: int) -> int:
        return math.ceil(self.capacities[recursion] * length - _ROUNDING)


@dataclass(frozen=True)
class TokenChoiceConfig:
    """A token's depth is chosen before the first recursion: that of the largest score of N.

    Bae et al. 2025 (arXiv 2507.10524), section 2.2.1, "token-choice routing", with the update of `ExpertChoiceConfig`
    and the probability of the chosen depth as its gate at every recursion (in the paper the last of a
    token's recursions alone adds what came in). It is causal in training mode too.

    - `balance`: "loss": `coefficient` · balance loss (0.1); "bias": each depth has a bias that is added to its score in
      choosing alone and rises by `rate` after a batch in which too few chose it, falls where too many did
      (Wang et al. 2024, arXiv 2408.15664, algorithm 1); the gate is then a sigmoid.
    - `alpha`: of the update; `z`: coefficient of the router's z-loss.
    """

    balance: Balance = "loss"
    coefficient: float = 0.1
    rate: float = 0.001
    alpha: float = 1.0
    z: float = 0.001

    def __post_init__(self) -> None:
        if self.balance not in get_args(Balance):
            raise InputError(f"balance: got {self.balance!r}, expected one of {', '.join(get_args(Balance))}")
        for name in ("coefficient", "rate", "z"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a finite number of at least 0")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha: got {self.alpha}, expected a positive number")

    def check(self, recursions: int) -> None:
        """Any number of recursions will do."""

    def build(self, width: int, recursions: int) -> "TokenChoice":
        return TokenChoice(self, width, recursions)


class TokenChoice(Router):
    """See `TokenChoiceConfig`."""

    bias: Tensor

    def __init__(self, config: TokenChoiceConfig, width: int, recursions: int) -> None:
        super().__init__()
        self.config, self.recursions = config, recursions
        self.score = _score(width, recursions)
        if config.balance == "bias":
            self.register_buffer("bias", torch.zeros(recursions))
        self.sampling_accuracy = []

    def begin(self, x: Float[Tensor, "tokens width"]) -> Tensor:
        """The depth and the gate of every token, side by side."""
        logits = _wide(x, self.score.weight)
        by_bias = self.config.balance == "bias"
        scores = logits.sigmoid() if by_bias else logits.softmax(-1)
        chosen = (scores + self.bias if by_bias else scores).argmax(-1, keepdim=True)
        if self.training:
            wanted = torch.bincount(chosen[:, 0], minlength=self.recursions)
            add_auxiliary_loss(self.config.z * z_loss(logits))
            if by_bias:
                load = wanted.to(self.bias.dtype)
                self.bias += self.config.rate * torch.sign(load.mean() - load)
            else:
                add_auxiliary_loss(self.config.coefficient * balance_loss(logits, wanted))
        return torch.cat([(chosen + 1).to(scores.dtype), scores.gather(1, chosen)], dim=1)

    def choose(
        self,
        recursion: int,
        x: Float[Tensor, "tokens width"],
        tokens: Tokens,
        decided: Tensor | None,
        taken: Int[Tensor, "rows"],
    ) -> Chosen:
        assert decided is not None, "a token's depth is chosen at the beginning"
        of_tokens = decided[tokens.place]
        gates = (self.config.alpha * of_tokens[:, 1:]).to(x.dtype)
        if recursion == 0:
            return Chosen(None, gates)
        index = (of_tokens[:, 0] > recursion).nonzero()[:, 0]
        return Chosen(index, gates.index_select(0, index))

    def onward(
        self,
        x: Float[Tensor, "tokens width"],
        recursion: Int[Tensor, "tokens"],
        after: Int[Tensor, "tokens"],
        taken: Int[Tensor, "tokens"],
        decided: Tensor | None,
    ) -> tuple[Bool[Tensor, "tokens"], Float[Tensor, "tokens 1"]]:
        assert decided is not None, "a token's depth is chosen at the beginning"
        return decided[:, 0] > recursion, (self.config.alpha * decided[:, 1:]).to(x.dtype)

    def share(self, recursion: int) -> float:
        return (self.recursions - recursion) / self.recursions

    def most(self, recursion: int, length: int) -> int:
        return length


@dataclass(frozen=True)
class Depths:
    """How many recursions each token of the last call took. No gradient flows from it."""

    of_tokens: Int[Tensor, "rows length"]
    recursions: int

    @property
    def mean(self) -> float:
        return float(self.of_tokens.double().mean())

    @property
    def load(self) -> Int[Tensor, "recursions"]:
        """Tokens that took exactly 1, 2, ... recursions."""
        return torch.bincount(self.of_tokens.flatten() - 1, minlength=self.recursions)

    @property
    def largest_violation(self) -> float:
        """(largest load - mean load) / mean load, "MaxVio" (Wang et al. 2024, arXiv 2408.15664, eq. 4)."""
        load = self.load.double()
        return float(load.max() / load.mean() - 1)

    @property
    def dead(self) -> float:
        """The part of the positions at which no sequence of the batch took the last recursion."""
        return float((self.of_tokens < self.recursions).all(0).double().mean())


def _score(width: int, outputs: int) -> Linear:
    """Small at the start, so that no token is far from either decision."""
    layer = Linear(width, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.1 * width**-0.5)
    return layer


def _wide(
    x: Float[Tensor, "tokens width"], weight: Float[Tensor, "*outputs width"]
) -> Float[Tensor, "tokens *outputs"]:
    with without_autocast(x):  # a small error of a score sends a token elsewhere
        return nn.functional.linear(*widen(x, weight))
