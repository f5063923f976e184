"""Mamba-2's chunked algorithm over torch's own matrix products: any device, any floating-point data type.

Dao & Gu 2024 (arXiv 2405.21060), section 6. With s the sums of delta A within a chunk, u = delta x, and S the state at
the chunk's beginning, for positions t, i of a chunk of Q:

    y = (C Bᵀ ⊙ L) u + e^s C S        L[t, i] = e^(s_t - s_i) for i ≤ t, else 0
    S' = e^(s_Q) S + Bᵀ (w u)         w_i = e^(s_Q - s_i)

The heads of a group share C Bᵀ, and their states lie side by side, [state, heads of the group · head_dim], so that what
goes into the states and out of them is one large product for each chunk. The sums are kept in float64, or their
differences would lose the digits that long sums have cost; what lies above L's diagonal is -inf before it becomes an
exponential.

The backward pass keeps the states at the beginnings, recomputes L, and goes back through the chunks. With g the
gradient of y, G that of S', and R = L ⊙ C Bᵀ ⊙ g uᵀ:

    du = (C Bᵀ ⊙ L)ᵀ g + w B G              d(C Bᵀ) = sum over the group's heads of L ⊙ g uᵀ
    dC = d(C Bᵀ) B + e^s g Sᵀ               dB = d(C Bᵀ)ᵀ C + w u Gᵀ        dS = e^(s_Q) G + Cᵀ (e^s g)

and the gradient of delta A at position j is a sum of terms each of which carries its own decay, none a difference:

    sum over i < j ≤ t of R[t, i] + sum over t ≥ j of e^s_t g_t · C_t S + sum over i < j of w_i u_i · B_i G
    + e^(s_Q) <S, G>
"""

import torch
from torch import Tensor

from verim.ops.precision import without_autocast


def chunked_dual_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` the states that `chunked_dual_backward` asks for. Arguments are unchecked."""
    with without_autocast(x):
        parts = _Chunks(x, delta, A, B, C, chunk)
        mixing = parts.decays()
        parts.of_groups(mixing).mul_(parts.scores()[:, :, :, None])
        y = (mixing @ parts.driven.transpose(2, 3)).transpose(2, 3)
        del mixing
        added = parts.B.mT @ parts.side_by_side(parts.driven * parts.to_end[..., None])
        states = x.new_empty(parts.batch, parts.count + 1, *added.shape[2:])
        states[:, 0] = 0 if initial is None else parts.pack(initial)
        through = parts.over_states(parts.through)
        for index in range(parts.count):
            torch.addcmul(added[:, index], through[:, index], states[:, index], out=states[:, index + 1])
        del added
        y = y.addcmul_(parts.apart(parts.C @ states[:, :-1]), parts.from_start[..., None])
        y = y.flatten(1, 2)[:, : parts.length]
        y = y.contiguous() if D is None else torch.addcmul(y, x, D[:, None])
        return y, parts.unpack(states[:, -1]), states[:, :-1].contiguous() if keep else x.new_empty(0)


def chunked_dual_backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, delta, A, B, C, D and the initial state."""
    with without_autocast(x):
        parts = _Chunks(x, delta, A, B, C, chunk)
        gradient = parts.cut(dy)
        from_start, to_end = parts.from_start[..., None], parts.to_end[..., None]

        # what goes through the states: G, the gradient of each chunk's last state, from the end to the beginning
        outward = parts.side_by_side(gradient * from_start)
        onward = torch.empty_like(states)
        through = parts.over_states(parts.through)
        to_first = x.new_zeros(states.shape[0], *states.shape[2:]) if dfinal is None else parts.pack(dfinal)
        to_starts = parts.C.mT @ outward
        for index in reversed(range(parts.count)):
            onward[:, index] = to_first
            to_first = torch.addcmul(to_starts[:, index], through[:, index], to_first)
        del to_starts
        dB = parts.side_by_side(parts.driven * to_end) @ onward.mT
        dC = outward @ states.mT
        ddriven = parts.apart(parts.B @ onward) * to_end
        into_states = (ddriven * parts.driven).sum(-1)
        out_of_states = (parts.apart(parts.C @ states) * from_start * gradient).sum(-1)
        kept = parts.unpacked_product(states, onward) * parts.through
        del outward, onward

        # what stays within a chunk
        decays, scores = parts.decays(), parts.scores()[:, :, :, None]
        gradient_rows, driven_rows = gradient.transpose(2, 3), parts.driven.transpose(2, 3)
        mixing = (parts.of_groups(decays) * scores).view_as(decays)
        ddriven += (mixing.mT @ gradient_rows).transpose(2, 3)
        del mixing
        dmixing = (gradient_rows @ driven_rows.mT).mul_(decays)
        del decays
        dscores = parts.of_groups(dmixing).sum(3)
        dB += dscores.mT @ parts.C
        dC += dscores @ parts.B
        parts.of_groups(dmixing).mul_(scores)
        across = dmixing.cumsum(-1).tril_(-1).sum(-2).transpose(2, 3)  # at i: what reaches from i or before to after i
        del dmixing

        dsteps = out_of_states.flip(2).cumsum(2).flip(2) + kept[:, :, None]
        dsteps[:, :, 1:] += across[:, :, :-1] + into_states.cumsum(2)[:, :, :-1]
        ddelta = parts.whole(dsteps * A + (ddriven * parts.x).sum(-1))
        dA = (dsteps * parts.delta).sum((0, 1, 2))
        dx = parts.whole(ddriven * parts.delta[..., None])
        dD = x.new_empty(A.shape) if D is None else (dy * x).sum((0, 1, 3))
        if D is not None:
            dx.addcmul_(dy, D[:, None])
        dB, dC = (parts.whole(part.transpose(2, 3)) for part in (dB, dC))
        return dx, ddelta, dA, dB, dC, dD, parts.unpack(to_first)


class _Chunks:
    """The sequence cut into chunks, zeros after its end: they neither change the state nor are read.

    Chunks come after the batch. `x` and `driven` [..., chunk, heads, head_dim], `delta`, `from_start` and `to_end`
    [..., chunk, heads], `B` and `C` [..., groups, chunk, state]; states [..., groups, state, heads of one · head_dim].
    """

    def __init__(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> None:
        self.batch, self.length, self.heads, self.dim = x.shape
        self.groups, self.state = B.shape[2:]
        self.chunk, self.count = chunk, -(-self.length // chunk)
        self.x, self.delta = self.cut(x), self.cut(delta)
        self.B, self.C = self.cut(B).transpose(2, 3), self.cut(C).transpose(2, 3)
        self.driven = self.x * self.delta[..., None]
        self.sums = (self.delta.double() * A.double()).cumsum(2)
        self.from_start = self.sums.exp().to(x.dtype)
        self.to_end = (self.sums[:, :, -1:] - self.sums).exp_().to(x.dtype)
        self.through = self.from_start[:, :, -1]

    def cut(self, tensor: Tensor) -> Tensor:
        """[batch, length, ...] in chunks."""
        missing = self.count * self.chunk - self.length
        if missing:
            tensor = torch.cat([tensor, tensor.new_zeros(self.batch, missing, *tensor.shape[2:])], 1)
        return tensor.unflatten(1, (self.count, self.chunk))

    def whole(self, tensor: Tensor) -> Tensor:
        """The other way round, as a new tensor."""
        return tensor.flatten(1, 2)[:, : self.length].clone(memory_format=torch.contiguous_format)

    def decays(self) -> Tensor:
        """L [batch, chunks, heads, chunk, chunk]."""
        sums = self.sums.transpose(2, 3)
        between = (sums[..., :, None] - sums[..., None, :]).to(self.x.dtype)
        later = torch.ones(self.chunk, self.chunk, dtype=torch.bool, device=self.x.device).triu_(1)
        return between.masked_fill_(later, -torch.inf).exp_()

    def scores(self) -> Tensor:
        """C Bᵀ [batch, chunks, groups, chunk, chunk]."""
        return self.C @ self.B.mT

    def of_groups(self, tensor: Tensor) -> Tensor:
        """[batch, chunks, heads, ...] as [batch, chunks, groups, heads of one, ...]."""
        return tensor.unflatten(2, (self.groups, self.heads // self.groups))

    def side_by_side(self, tensor: Tensor) -> Tensor:
        """[batch, chunks, chunk, heads, head_dim], a group's heads side by side behind the positions."""
        return tensor.unflatten(3, (self.groups, self.heads // self.groups)).flatten(4, 5).transpose(2, 3)

    def apart(self, tensor: Tensor) -> Tensor:
        """The other way round."""
        return tensor.transpose(2, 3).reshape(self.batch, self.count, self.chunk, self.heads, self.dim)

    def over_states(self, numbers: Tensor) -> Tensor:
        """A number for each head, [batch, chunks, heads], so that it broadcasts over packed states."""
        return self.of_groups(numbers).repeat_interleave(self.dim, 3)[:, :, :, None]

    def pack(self, state: Tensor) -> Tensor:
        """[batch, heads, state, head_dim], a group's heads side by side behind the entries of the state."""
        return state.unflatten(1, (self.groups, self.heads // self.groups)).transpose(2, 3).flatten(3, 4)

    def unpack(self, packed: Tensor) -> Tensor:
        """The other way round, as a new tensor."""
        by_head = packed.unflatten(3, (self.heads // self.groups, self.dim)).transpose(2, 3)
        return by_head.clone(memory_format=torch.contiguous_format).flatten(1, 2)

    def unpacked_product(self, left: Tensor, right: Tensor) -> Tensor:
        """The inner product of each head's states, [batch, chunks, heads]."""
        products = (left * right).unflatten(4, (self.heads // self.groups, self.dim))
        return products.sum((3, 5)).flatten(2, 3)
