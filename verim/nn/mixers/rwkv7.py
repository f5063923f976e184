"""RWKV-7: a linear-time mixer whose heads keep a matrix that every position decays, corrects and adds to."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.along import HERE, Along
from verim.nn.linear import Linear
from verim.nn.mixers.mixer import Mixer
from verim.nn.state import TensorState
from verim.nn.token_shift import TokenShift, rising
from verim.ops.wkv7 import cost

_NORM_EPS = 1e-5  # a channel: the published 64e-5 are for heads of 64


@dataclass(frozen=True)
class RWKV7Config:
    """The time mix of Peng et al. 2025 (arXiv 2503.14456): heads of `head_dim` channels, width / head_dim of them.

    `decay_rank`, `rate_rank`, `gate_rank`: of the low-rank makers of the decay, the in-context learning rate and the
    gate; 0: as the published code suggests, 2.5, 2.5 and 5 times the root of the width, in steps of 32, at least
    32. The published models have `RWKV7ChannelMixConfig` behind it, `NormConfig("layer", 1e-5)` and a norm after the
    embedding.
    """

    head_dim: int = 64
    decay_rank: int = 0
    rate_rank: int = 0
    gate_rank: int = 0

    def __post_init__(self) -> None:
        if self.head_dim < 1:
            raise InputError(f"head_dim: got {self.head_dim}, expected at least 1")
        for name in ("decay_rank", "rate_rank", "gate_rank"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 0 (from the width) or more")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "RWKV7":
        return RWKV7(self, width, index, depth)


@dataclass(frozen=True)
class RWKV7State(TensorState):
    """The last input, and the matrix of each head: rows for keys, columns for values."""

    last: Float[Tensor, "batch width"]
    wkv: Float[Tensor, "batch heads head_dim head_dim"]


class LowRank(nn.Module):
    """y = W_up f(W_down x) + bias: a function of the input that starts near its bias."""

    def __init__(
        self, bias: Float[Tensor, "width"] | None, width: int, rank: int, inside: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.down = Linear(width, rank, bias=False)
        self.up = Linear(rank, width, bias=bias is not None)
        self.inside = inside
        if bias is not None:
            with torch.no_grad():
                self.up.bias.copy_(bias)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        return self.up(self.inside(self.down(x)))


class RWKV7(Mixer):
    """y = W_out (g ⊙ (norm(r S) + (r ⊙ bonus · k) v)) with S by `verim.ops.wkv7`: each head's generalised delta rule.

    Peng et al. 2025 (arXiv 2503.14456, section 4.1). From mixes of x_t and x_{t-1}, the rows of `shift.mix` in the
    order r, w, k, v, a, g (the paper's μ is 1 - mix):

        r = W_r x_r      k' = W_k x_k     v = W_v x_v      g = W_up sigmoid(W_down x_g)
        a = sigmoid(rate(x_a))            w = exp(-e^(-1/2) sigmoid(decay(x_w)))
        k̂ = k' ⊙ removal_scale, of length 1 in each head       k = k' ⊙ (1 + (a - 1) ⊙ rate_scale)
        S_t = S_{t-1} diag(w) - S_{t-1} k̂ᵀ (a ⊙ k̂) + vᵀ k      norm: each head on its own, then `norm`'s gain and bias

    In the published code (BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py) `removal_scale` is k_k, `rate_scale` k_a,
    `bonus` r_k; `decay`, `rate` and `gate` have the matrices w1 and w2, a1 and a2, g1 and g2 and the biases w0 and a0.
    The vectors start as there; the matrices as those of every model here (`verim.models.LanguageModel`).

    Left out on purpose: the value residual, by which all blocks but the first mix the first block's v into theirs. A
    layer sees its own input and its own state alone, which is what lets any mixer stand in any block, in any model;
    a tensor handed from block to block beside the residual stream would end that for one architecture's sake.
    Published weights of RWKV-7 therefore do not fit.
    """

    along: Along = HERE

    def __init__(self, config: RWKV7Config, width: int, index: int = 0, depth: int = 1) -> None:
        super().__init__()
        if width % config.head_dim:
            raise InputError(f"head_dim: got {config.head_dim} for width {width}; expected a divisor of it")
        self.head_dim, self.heads = config.head_dim, width // config.head_dim
        fall, rise = 1 - index / depth, index / max(depth - 1, 1)  # 1 to nearly 0, and 0 to 1, down the depth
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2]) * fall
        self.shift = TokenShift(rising(width) ** powers[:, None])
        across = torch.arange(width) / max(width - 1, 1)
        inside = 2 * (torch.arange(width) % self.head_dim) / max(self.head_dim - 1, 1) - 1  # -1 to 1 in each head
        zigzag = inside * inside.abs()
        decay = -6 + 6 * across ** (1 + rise**0.3) + 0.5 + 2.5 * zigzag
        rate = -0.19 + 0.3 * zigzag + 0.4 * (across - 0.5)
        self.receptance = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.decay = LowRank(decay, width, config.decay_rank or _rank(2.5, width), torch.tanh)
        self.rate = LowRank(rate, width, config.rate_rank or _rank(2.5, width), nn.Identity())
        self.gate = LowRank(None, width, config.gate_rank or _rank(5, width), torch.sigmoid)
        self.removal_scale = nn.Parameter(0.71 - 0.1 * (across - 0.5))
        self.rate_scale = nn.Parameter(torch.full((width,), 1.02))
        self.bonus = nn.Parameter(torch.full((self.heads, self.head_dim), -0.04))
        self.norm = nn.GroupNorm(self.heads, width, eps=_NORM_EPS * self.head_dim)
        self.out = Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: RWKV7State | None = None
    ) -> tuple[Float[Tensor, "batch length width"], RWKV7State]:
        last, matrices = (None, None) if state is None else (state.last, state.wkv)
        (of_r, of_w, of_k, of_v, of_a, of_g), last = self.shift(x, last)
        r, k, v = self.receptance(of_r), self.key(of_k), self.value(of_v)
        rate = torch.sigmoid(self.rate(of_a))
        w = self.decay(of_w)
        w = w.to(torch.promote_types(w.dtype, torch.float32))  # close to 1, where halves are coarse
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(w))
        removed = nn.functional.normalize(self._by_head(k * self.removal_scale), dim=-1)
        k = k * (1 + (rate - 1) * self.rate_scale)
        r, w, k, v, rate = map(self._by_head, (r, w, k, v, rate))
        y, matrices = self.along.wkv7(r, w, k, v, -removed, removed * rate, state=matrices)
        y = self.norm(y.flatten(0, 1).flatten(1)).view(y.shape)
        y = y + (r * k * self.bonus).sum(-1, keepdim=True) * v
        return self.out(y.flatten(2) * self.gate(of_g)), RWKV7State(last, matrices)

    def _by_head(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length heads head_dim"]:
        return x.unflatten(2, (self.heads, self.head_dim))

    def state_bytes(self, batch: int, length: int) -> int:
        width, element = self.key.in_features, self.key.weight.element_size()
        return batch * width * (element + self.head_dim * max(element, 4))  # halves: matrices are kept in float32

    def flops(self, length: int) -> tuple[float, float]:
        weights = 2 * sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        shape = (1, 1, self.heads, self.head_dim)
        return weights + cost.forward_cost(*shape).flops, 2 * weights + cost.backward_cost(*shape).flops


def _rank(factor: float, width: int) -> int:
    """The published suggestion for the rank of a low-rank maker."""
    return max(32, round(factor * math.sqrt(width) / 32) * 32)
