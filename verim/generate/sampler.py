"""From logits to the next token of every row, each by the settings of its own request."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verim.generate.draws import Draws
from verim.generate.sampling import Sampling

_CANDIDATES = 64  # so many likeliest tokens mostly reach `top_p`
_GROWTH = 8


class Sampler:
    """Draws the next token of every row of a batch.

    A row's token depends on its logits, its settings and how many tokens it drew before, not on the rows beside it.
    Rows are worked on together with those of the same kind: greedy ones, ones that draw from all tokens, and ones that
    cut the tail off and so need the likeliest tokens first. Nothing is sorted but these.

    `drawn`: how many tokens each row has drawn; `seen`: `[rows, vocab]`, which tokens count for the repetition
    penalty (`tokens_seen`); it is kept up to date here and may be None where no row has a penalty.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        drawn: Sequence[int],
        seen: Bool[Tensor, "rows vocab"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        self._penalty, self._seen = None, seen
        if any(sampling.repetition_penalty != 1 for sampling in samplings):
            assert seen is not None, "a repetition penalty needs the tokens that were seen"
            self._penalty = _column([sampling.repetition_penalty for sampling in samplings], device)
        groups: dict[tuple[bool, bool], list[int]] = {}
        for row, sampling in enumerate(samplings):
            groups.setdefault(_key(sampling), []).append(row)
        self._kinds = [
            (
                _kind([samplings[row] for row in rows], [drawn[row] for row in rows], device),
                None if len(groups) == 1 else torch.tensor(rows, device=device),
            )
            for rows in groups.values()
        ]

    def draw(self, logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, "rows"]:
        """The next token of each row."""
        if self._penalty is not None and self._seen is not None:
            logits = penalised(logits, self._seen, self._penalty)
        tokens = self._drawn(logits)
        if self._penalty is not None and self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens

    def _drawn(self, logits: Tensor) -> Tensor:
        first, rows = self._kinds[0]
        if rows is None:
            return first.draw(logits)
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        for kind, rows in self._kinds:
            assert rows is not None, "of several kinds each knows its rows"
            tokens[rows] = kind.draw(logits[rows])
        return tokens


def probabilities(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, seen: Bool[Tensor, "rows vocab"] | None = None
) -> Float[Tensor, "rows vocab"]:
    """The distribution that a request with `sampling` draws from, for each row of logits."""
    if sampling.repetition_penalty != 1:
        assert seen is not None, "a repetition penalty needs the tokens that were seen"
        logits = penalised(logits, seen, sampling.repetition_penalty)
    weights, tokens = _kind([sampling], [0], logits.device).weights(logits)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights if tokens is None else weights.new_zeros(logits.shape).scatter_(1, tokens, weights)


def pick(weights: Float[Tensor, "rows n"], uniform: Float[Tensor, "rows draws"]) -> Int[Tensor, "rows draws"]:
    """The indices at which the running sum of the weights passes `uniform` (0 to 1) times their sum.

    Sums are float64, so that the tail of a large vocabulary is drawn as often as it should; a weight of zero never is.
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums, uniform * sums[:, -1:], right=True)


def penalised(logits: Tensor, seen: Tensor, penalty: Tensor | float) -> Tensor:
    """Logits of the tokens in `seen` divided by `penalty` where they are positive, else multiplied by it."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def tokens_seen(histories: Sequence[Sequence[int]], vocab: int, device: torch.device) -> Bool[Tensor, "rows vocab"]:
    """Which tokens each history holds."""
    seen = torch.zeros(len(histories), vocab, dtype=torch.bool)
    for row, history in zip(seen, histories, strict=True):
        row[torch.tensor(history, dtype=torch.int64)] = True
    return seen.to(device)


class _Kind(ABC):
    """Rows that draw in the same way; where it has one setting, it serves any number of rows."""

    @abstractmethod
    def draw(self, logits: Tensor) -> Tensor:
        """The next token of each row."""

    @abstractmethod
    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """What tokens are drawn in proportion to, and which tokens these are (None: all, in order)."""


class _Greedy(_Kind):
    """Takes the likeliest token."""

    def draw(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.ones_like(logits[:, :1]), logits.argmax(-1, keepdim=True)


class _Random(_Kind):
    """Draws from all tokens, or from those that `cut` and `min_p` leave."""

    def __init__(
        self, samplings: Sequence[Sampling], drawn: Sequence[int], cut: "_Cut | None", device: torch.device
    ) -> None:
        self._draws = Draws([sampling.seed for sampling in samplings], drawn, device)
        self._temperature = _column([sampling.temperature for sampling in samplings], device)
        self._tempered = any(sampling.temperature != 1 for sampling in samplings)
        self._cut = cut
        least = [sampling.min_p for sampling in samplings]
        self._min_p = _column(least, device) if any(least) else None

    def draw(self, logits: Tensor) -> Tensor:
        weights, tokens = self.weights(logits)
        index = pick(weights, self._draws.next())
        return (index if tokens is None else tokens.gather(1, index))[:, 0]

    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = (logits / self._temperature.to(logits.dtype) if self._tempered else logits).softmax(-1)
        weights, tokens = (weights, None) if self._cut is None else self._cut(weights)
        if self._min_p is not None:
            weights = weights.masked_fill(weights < self._min_p * weights.amax(-1, keepdim=True), 0)
        return weights, tokens


class _Cut:
    """Leaves the likeliest tokens, in their order: the first k, as many as reach a probability, or both."""

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        counts, parts = [sampling.top_k for sampling in samplings], [sampling.top_p for sampling in samplings]
        self._counts = _column(counts, device)
        self._part = _column(parts, device) if min(parts) < 1 else None
        self._open = min(counts) == 0  # how many tokens some row needs is not known beforehand
        self._uneven = min(counts) != max(counts)
        self._candidates = max(*counts, _CANDIDATES) if self._open else max(counts)

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        values, tokens = self._likeliest(weights)
        if self._uneven:
            column = torch.arange(values.shape[-1], device=values.device)
            values = values.masked_fill((column >= self._counts) & (self._counts > 0), 0)
        if self._part is not None:
            sums = values.cumsum(-1, dtype=torch.float64)
            # a row with `top_k` takes its part of the probability of these tokens, another one of that of all
            whole = torch.where(self._counts == 0, 1.0, sums[:, -1:]) if self._open else sums[:, -1:]
            values = values.masked_fill(sums - values >= self._part * whole, 0)
        return values, tokens

    def _likeliest(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As many likeliest tokens as every row needs at least."""
        vocab = weights.shape[-1]
        while True:
            values, tokens = weights.topk(min(self._candidates, vocab))
            if not self._open or self._candidates >= vocab:
                return values, tokens
            assert self._part is not None, "a row that does not count its tokens has a probability to reach"
            reached = values.sum(-1, keepdim=True) >= self._part
            if bool((reached | (self._counts > 0)).all()):
                return values, tokens
            self._candidates *= _GROWTH


def _key(sampling: Sampling) -> tuple[bool, bool]:
    """Rows that draw in the same way have the same."""
    greedy = sampling.temperature == 0
    return greedy, not greedy and (sampling.top_k > 0 or sampling.top_p < 1)


def _kind(samplings: Sequence[Sampling], drawn: Sequence[int], device: torch.device) -> _Kind:
    greedy, cut = _key(samplings[0])
    return _Greedy() if greedy else _Random(samplings, drawn, _Cut(samplings, device) if cut else None, device)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)[:, None]
