"""Mixture of experts: a feed-forward layer of many SwiGLUs, of which a token uses a few."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.auxiliary import add_auxiliary_loss
from verim.nn.experts import swiglu_experts
from verim.nn.feed_forward import FeedForward, SwiGLU, SwiGLUConfig, check_hidden
from verim.nn.linear import Linear
from verim.nn.linear_stack import LinearStack, Matrix
from verim.nn.routing import (
    Routing,
    Rows,
    balance_loss,
    by_threshold,
    expert_choice,
    token_choice,
    z_loss,
)
from verim.nn.state import State
from verim.ops.precision import widen, without_autocast

Rule = Literal["softmax_of_top", "top_of_softmax", "expert_choice"]

THRESHOLD_DECAY = 0.9
"""Of the moving average of the scores at which the experts' selections end; the first batches count evenly."""


@dataclass(frozen=True)
class MixtureOfExpertsConfig:
    """`experts` SwiGLUs of `hidden` channels between; a token uses `active` of them.

    - `routing`, with s = W_router x:
      "softmax_of_top": a token goes to its `active` experts of the largest s, with the softmax over these as gates
      (Shazeer et al. 2017, arXiv 1701.06538, eq. 3 and 5, without the noise; Mixtral, arXiv 2401.04088, section 2.1);
      "top_of_softmax": to the same experts, with the softmax over all experts as gates (Fedus et al. 2021, Switch,
      arXiv 2101.03961, eq. 1 and 2; DeepSeekMoE, arXiv 2401.06066, eq. 3 to 5);
      "expert_choice": every expert takes the tokens · `active` / `experts` tokens of the highest softmax over all
      experts, which are the gates (Zhou et al. 2022, arXiv 2202.09368, section 3.2, `active` their c): `active`
      experts a token in the mean, and NOT CAUSAL in training, see `MixtureOfExperts`.
    - `shared`: experts of the same size that every token uses beside (DeepSeekMoE, section 3.2).
    - `capacity_factor`: in training an expert takes at most ceil(capacity_factor · tokens · active / experts) choices
      (Switch, eq. 3), tokens being those of the whole batch; 0: as many as come, none is dropped.
    - `balance`, `z`: coefficients of the balance loss (Switch: 0.01) and of the router's z-loss (ST-MoE, arXiv
      2202.08906, eq. 5: 0.001).
    """

    experts: int
    hidden: int
    active: int = 2
    routing: Rule = "softmax_of_top"
    shared: int = 0
    capacity_factor: float = 0.0
    balance: float = 0.01
    z: float = 0.001

    def __post_init__(self) -> None:
        check_hidden(self.hidden)
        for name, least in (("experts", 1), ("active", 1), ("shared", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.active > self.experts:
            raise InputError(f"active: got {self.active}, expected at most experts, {self.experts}")
        if self.routing not in get_args(Rule):
            raise InputError(f"routing: got {self.routing!r}, expected one of {', '.join(get_args(Rule))}")
        for name in ("capacity_factor", "balance", "z"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a finite number of at least 0")
        if self.routing == "softmax_of_top" and self.active == 1 < self.experts:
            raise InputError(
                "active: got 1 with routing 'softmax_of_top': every gate would be 1 and the router learn nothing; "
                "expected 2 or more, or routing 'top_of_softmax'"
            )
        if self.routing == "expert_choice" and self.capacity_factor:
            raise InputError(
                f"capacity_factor: got {self.capacity_factor} with routing 'expert_choice', whose experts take "
                "tokens · active / experts each; expected 0: change active"
            )

    def build(self, width: int, index: int = 0, depth: int = 1) -> "MixtureOfExperts":
        return MixtureOfExperts(self, width)


class RoutedBatch(Protocol):
    """The tokens that are routed together in training: those of a call (`HERE`), or those of several processes."""

    def logits(self, logits: Float[Tensor, "batch length experts"]) -> Float[Tensor, "rows positions experts"]:
        """The router's logits of all of them, of which `logits` are these rows and positions."""
        ...

    def own(self, rows: Rows, gates: Float[Tensor, "rows"], batch: int, length: int) -> tuple[Rows, Tensor]:
        """Of all rows those of the `batch` · `length` tokens here, numbered as these are, and their gates."""
        ...


class _Here:
    def logits(self, logits: Tensor) -> Tensor:
        return logits

    def own(self, rows: Rows, gates: Tensor, batch: int, length: int) -> tuple[Rows, Tensor]:
        return rows, gates


HERE: RoutedBatch = _Here()


class MixtureOfExperts(FeedForward):
    """y = Σ over the token's experts e: gate_e W_out[e] (silu(W_gate[e] x) ⊙ W_in[e] x), and the shared experts.

    In training a choice beyond its expert's capacity is dropped: without it the residual stream carries the token on.
    Choices are taken in the order of positions, so that none depends on what comes after it in its sequence, but on
    the other sequences of the batch. In evaluation mode nothing is dropped, and a token's output depends on that
    token alone.

    EXPERT CHOICE IS NOT CAUSAL IN TRAINING MODE: whether an expert takes a token depends on all the tokens of the
    batch, those after it too, and a token that comes alone is taken by every expert. In evaluation mode (`eval()`) an
    expert takes every token whose score reaches its threshold, a moving average over the batches of training of the
    score at which its selection ended: causal, and a sequence in chunks gives what the whole gives. So a model with
    expert choice is evaluated and decodes in evaluation mode only, and as another function than it was trained as.

    In training every call hands `balance` · balance loss + `z` · z-loss to `auxiliary_losses`. `routing` is what
    happened in the last call, to watch.

    `compute`, `swiglu_experts` with its arguments, may be replaced by what does the same over several processes
    (`verim.train.parallel`); the router stays here. So may `batch`, the tokens that are routed together in training.
    """

    batch: RoutedBatch = HERE
    thresholds: Tensor
    batches: Tensor

    def __init__(self, config: MixtureOfExpertsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.routing: Routing | None = None
        self.compute = swiglu_experts
        self.router = Linear(width, config.experts, bias=False)
        self.gate_and_in = LinearStack(config.experts, width, 2 * config.hidden)
        self.out = LinearStack(config.experts, config.hidden, width)
        self.shared = SwiGLU(SwiGLUConfig(config.shared * config.hidden), width) if config.shared else None
        if config.routing == "expert_choice":
            self.register_buffer("thresholds", torch.full((config.experts,), 1 / config.experts))
            self.register_buffer("batches", torch.zeros(()))

    def forward(
        self, x: Float[Tensor, "batch length width"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length width"], State | None]:
        tokens = x.flatten(0, 1)
        with without_autocast(x):  # a small error of the router sends a token elsewhere (Switch, section 2.4)
            logits = nn.functional.linear(*widen(tokens, self.router.weight))
        routed = logits.view(*x.shape[:2], -1)
        if self.training:
            routed = self.batch.logits(routed)
        rows, gates, wanted = self._route(routed.flatten(0, 1), routed.shape[1])
        self.routing = Routing(routed.detach().flatten(0, 1), wanted, rows.load, rows.tokens)
        if self.training:
            rows, gates = self.batch.own(rows, gates, *x.shape[:2])
        y = self.compute(tokens, self.gate_and_in.weight, self.out.weight, rows, gates).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)[0]
        if self.training:
            add_auxiliary_loss(self.config.balance * balance_loss(logits, wanted) + self.config.z * z_loss(logits))
        return y, None

    def _route(self, logits: Float[Tensor, "tokens experts"], length: int) -> tuple[Rows, Tensor, Tensor]:
        """The experts' rows, their gates, and how many choices fell on each expert."""
        config = self.config
        if config.routing == "expert_choice":
            scores = logits.softmax(-1)
            if not self.training:
                rows, gates = by_threshold(scores, self.thresholds)
                return rows, gates, rows.load
            rows, best = expert_choice(scores, self._share(len(logits), 1.0))
            self._remember(best[:, -1].detach())
            return rows, best.reshape(-1), rows.load
        best, chosen = logits.topk(config.active, dim=-1)
        gates = best.softmax(-1) if config.routing == "softmax_of_top" else logits.softmax(-1).gather(-1, chosen)
        limited = self.training and config.capacity_factor > 0
        capacity = self._share(len(logits), config.capacity_factor) if limited else None
        rows, choices, wanted = token_choice(chosen, config.experts, capacity, length)
        return rows, gates.reshape(-1).index_select(0, choices), wanted

    def _share(self, tokens: int, factor: float) -> int:
        """An expert's part of the choices of `tokens` tokens, times `factor`."""
        return math.ceil(factor * tokens * self.config.active / self.config.experts)

    def _remember(self, ends: Float[Tensor, "experts"]) -> None:
        """Takes the scores at which the experts' selections ended into the moving average."""
        self.batches += 1
        rate = (1 / self.batches).clamp(min=1 - THRESHOLD_DECAY)
        self.thresholds.lerp_(ends.to(self.thresholds.dtype), rate)

    def flops(self, length: int) -> tuple[float, float]:
        weights = sum(weight.numel() for weight in self.parameters()) - self.idle_weights()
        return 2 * weights, 4 * weights

    def idle_weights(self) -> int:
        experts = (self.gate_and_in.weight.numel() + self.out.weight.numel()) // self.config.experts
        return (self.config.experts - self.config.active) * experts

    def writers(self) -> list[Matrix]:
        return [self.out] if self.shared is None else [self.out, *self.shared.writers()]
