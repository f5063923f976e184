"""Speculative decoding: a small model proposes, the large one judges; the distribution stays the large one's."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verim.errors import InputError
from verim.generate.checks import check_prompt, warn_of_context, warn_of_windows
from verim.generate.diagnosis import require_finite
from verim.generate.draws import Draws
from verim.generate.request import Event, Request
from verim.generate.sampler import pick, probabilities, tokens_seen
from verim.generate.sampling import Sampling
from verim.generate.text import Tokenizer
from verim.models import LanguageModel
from verim.nn import StackState

_CHUNK = 512


class Speculation:
    """Tokens of `model` for one prompt, with `draft` proposing `ahead` of them at a time.

    What is drawn has exactly the distribution that `model` alone has under `sampling` (Leviathan et al. 2023,
    arXiv 2211.17192, algorithm 1 and appendix A.1; Chen et al. 2023, arXiv 2302.01318, algorithm 2); with temperature
    0 it is the same text. The draws are others than those of plain decoding with the same seed. Any architecture may
    propose or judge: attention drops what was not accepted from its cache, a recurrent model reads the accepted tokens
    again from the state that it kept.

    Raises `InputError` where the two models do not have one vocabulary, and as `Engine.add` does.
    """

    def __init__(
        self,
        model: LanguageModel,
        draft: LanguageModel,
        prompt: Sequence[int],
        sampling: Sampling | None = None,
        tokenizer: Tokenizer | None = None,
        ahead: int = 4,
    ) -> None:
        if draft.config.vocab != model.config.vocab:
            raise InputError(
                f"draft: got a model of {draft.config.vocab} tokens for one of {model.config.vocab}; expected one with "
                "the same vocabulary"
            )
        if ahead < 1:
            raise InputError(f"ahead: got {ahead}, expected at least 1 token to propose")
        check_prompt(prompt, model.config.vocab)
        self._sampling, self._ahead = sampling or Sampling(), ahead
        warn_of_windows(model.config)
        warn_of_context(model.config, len(prompt), self._sampling.max_tokens)
        self._request = Request(0, prompt, self._sampling, tokenizer)
        self._target, self._draft = _Reader(model.eval()), _Reader(draft.eval())
        self._device = model.embedding.weight.device
        self._draws = Draws([self._sampling.seed], [0], self._device)
        self.rounds = 0
        """Calls of the large model to judge proposals."""
        self.proposed = 0
        """Tokens that the small one proposed."""
        self.accepted = 0
        """Proposals that the large one accepted."""

    @property
    def acceptance(self) -> float:
        """Share of the proposals that were accepted."""
        return self.accepted / self.proposed if self.proposed else 0.0

    def events(self) -> Iterator[Event]:
        """Tokens as they are accepted or drawn; to be asked for once."""
        for reader in (self._target, self._draft):
            reader.prefill(self._request.prompt)
        while not self._request.finished:
            for token in self._round():
                yield self._request.take(token)
                if self._request.finished:
                    return

    @torch.no_grad()
    def _round(self) -> list[int]:
        """Proposals that were accepted, and one token more."""
        left = self._sampling.max_tokens - len(self._request.tokens)
        proposals, drafted, seen = self._propose(min(self._ahead, left - 1))
        logits = self._target.read(proposals, self._request)
        wanted = probabilities(logits, self._sampling, seen)
        numbers = torch.cat([self._draws.next() for _ in range(len(proposals) + 1)])
        accepted, token = judged(
            wanted, drafted, torch.tensor(proposals, dtype=torch.int64, device=self._device), numbers[:, 0]
        )
        self.rounds += 1
        self.proposed += len(proposals)
        self.accepted += accepted
        for reader in (self._target, self._draft):
            reader.settle(proposals[:accepted], token)
        return [*proposals[:accepted], token]

    def _propose(self, count: int) -> tuple[list[int], Float[Tensor, "count vocab"], Bool[Tensor, "all vocab"] | None]:
        """Tokens drawn from the draft, the distributions that they were drawn from, and what was seen before each."""
        proposals: list[int] = []
        drafted = []
        seen = self._seen()
        for _ in range(count):
            logits = self._draft.read(proposals[-1:], self._request)
            drafted.append(probabilities(logits[-1:], self._sampling, None if seen is None else seen[-1:]))
            proposals.append(int(pick(drafted[-1], self._draws.next())))
            if seen is not None:
                seen = torch.cat([seen, seen[-1:]])
                seen[-1, proposals[-1]] = True
        vocab = self._target.model.config.vocab
        empty = torch.empty(0, vocab, device=self._device)
        return proposals, torch.cat(drafted) if drafted else empty, seen

    def _seen(self) -> Bool[Tensor, "1 vocab"] | None:
        if self._sampling.repetition_penalty == 1:
            return None
        history = self._request.prompt + self._request.tokens
        return tokens_seen([history], self._target.model.config.vocab, self._device)


def judged(
    wanted: Float[Tensor, "proposals_and_one vocab"],
    drafted: Float[Tensor, "proposals vocab"],
    proposals: Int[Tensor, "proposals"],
    uniform: Float[Tensor, "proposals_and_one"],
) -> tuple[int, int]:
    """How many proposals are accepted, and the token that follows them.

    Proposal x is accepted with probability min(1, wanted(x) / drafted(x)); after the first that is not, a token is
    drawn from max(0, wanted - drafted), after the last from what is wanted there (Leviathan et al. 2023, algorithm 1).
    """
    places = torch.arange(len(proposals), device=proposals.device)
    passes = uniform[:-1] * drafted[places, proposals] < wanted[places, proposals]
    accepted = int(passes.cumprod(0).sum())
    left = wanted[accepted]
    if accepted < len(proposals):
        rest = (left - drafted[accepted]).clamp(min=0)
        left = rest if bool(rest.any()) else left  # equal but for rounding
    return accepted, int(pick(left[None], uniform[-1:, None]))


class _Reader:
    """A model that reads tokens of which the last may have to be taken back."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._settled: StackState | None = None  # after all that is certain, but for `_unread`
        self._unread: list[int] = []
        self._read: list[int] = []  # since then, `_unread` first
        self._states: list[tuple[int, StackState]] = []  # how much of `_read` each has seen

    @torch.no_grad()
    def prefill(self, prompt: Sequence[int]) -> None:
        """Reads the prompt but for its last token, after which the first logits are asked for."""
        for first in range(0, len(prompt) - 1, _CHUNK):
            chunk = prompt[first : min(first + _CHUNK, len(prompt) - 1)]
            _, self._settled = self.model(self._row(chunk), self._settled, last=1)
        self._unread = [prompt[-1]]

    def read(self, tokens: Sequence[int], request: Request) -> Float[Tensor, "ends vocab"]:
        """Logits after what is certain, unless that has been read before, and after each of `tokens`."""
        new = list(tokens) if self._read else [*self._unread, *tokens]
        before = self._states[-1][1] if self._states else self._settled
        chunk = self._row(new)
        logits, state = self.model(chunk, before, last=len(tokens) + (0 if self._read else 1))
        require_finite(logits, self.model, chunk, before, lambda row: request.described())
        self._read += new
        self._states.append((len(self._read), state))
        return logits[0]

    def settle(self, accepted: Sequence[int], token: int) -> None:
        """Makes `accepted`, the first of the tokens that were read, and `token` after them certain; drops the rest."""
        certain = [*self._unread, *accepted]
        kept = min(len(certain), len(self._read))
        if self._states:
            self._settled = self._state_after(kept)
        self._unread = [*certain[kept:], token]
        self._read, self._states = [], []

    def _state_after(self, kept: int) -> StackState:
        """The state after the first `kept` tokens read; those that no state ends with are read again."""
        state = self._states[-1][1].earlier(len(self._read) - kept)
        if state is not None:
            return state
        end, before = max(
            ((end, state) for end, state in self._states if end <= kept),
            key=lambda seen: seen[0],
            default=(0, self._settled),
        )
        if before is not None and end == kept:
            return before
        return self.model(self._row(self._read[end:kept]), before, last=1)[1]

    def _row(self, tokens: Sequence[int]) -> Int[Tensor, "1 length"]:
        return torch.tensor([list(tokens)], device=self.model.embedding.weight.device)
