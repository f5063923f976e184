"""Attention over a sequence whose pieces lie on ranks: keys and values go round, queries stay."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from verim.errors import InputError
from verim.ops.attention import attention, kernels_of
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.distributed.halo import rows_before
from verim.ops.distributed.ranks import Exchange, Ranks
from verim.ops.precision import HALVES, follow_autocast

_NAME = "distributed_attention"
_ALIKE = (
    "the data type",
    "the device",
    "the shape of q",
    "the shape of k",
    "causal",
    "window",
    "order",
    "recording gradients",
)
Order = Literal["contiguous", "zigzag"]
Heads = Float[Tensor, "batch length heads head_dim"]


def spans(position: int, ranks: int, length: int, order: Order = "contiguous") -> list[range]:
    """Which positions of a sequence the rank at `position` of `ranks` holds, `length` of them.

    "contiguous": one range after the other. "zigzag": the sequence in 2 · ranks parts, of which rank r holds part r
    and part 2 · ranks - 1 - r, so that causal attention is the same work for all.
    """
    if order == "contiguous":
        return [range(position * length, (position + 1) * length)]
    half = length // 2
    return [range(part * half, (part + 1) * half) for part in (position, 2 * ranks - 1 - position)]


@_disable_dynamo
def distributed_attention(
    q: Heads,
    k: Float[Tensor, "batch length kv_heads head_dim"],
    v: Float[Tensor, "batch length kv_heads head_dim"],
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    order: Order = "contiguous",
    group: ProcessGroup | None = None,
) -> Heads:
    """`verim.ops.attention` of a sequence whose pieces lie on the ranks of a `torch.distributed` group.

    Rank r of `group` (by default all processes) gives its piece of queries, keys and values, of one length on all
    ranks, and gets its piece of the output; which positions those are says `spans`. `causal`, `window` and `scale` as
    in `attention`.

    **Algorithm.** Ring attention (Liu et al. 2023, arXiv 2310.01889, section 3): at every step a rank computes its
    queries against the keys and values that it holds while these travel to the next rank and the next come in. Partial
    outputs merge by the logarithms of their rows' sums. In the backward pass keys and values go round again, and the
    gradients of a piece follow it, one step behind, and go home from the last rank that has seen it. What lies in
    the future of all of a rank's queries is neither computed nor sent to it. With `order="zigzag"` all ranks do the
    same work (Brandon et al. 2023, arXiv 2311.09431, deal out single tokens to that end); with "contiguous" the last
    rank computes with all pieces and the first with its own.

    With `window` nothing goes round: a rank asks for the window - 1 keys and values before its piece (`rows_before`).

    **Cost.** A piece of keys and values is P = 2 · batch · length · kv_heads · head_dim numbers. All ranks n together
    send n (n - 1) / 2 pieces forward ("contiguous", causal) or n (n - 1), and twice as many backward (the gradients in
    float32 for halves). No rank ever holds more than two pieces beside its own, and two of gradients.

    **Gradients** are those of the sum of all ranks' losses; the backward pass exchanges too: all ranks must run it.
    It is not differentiable twice.

    Raises `InputError`, on all ranks, where there is no process group, where one rank's arguments are wrong, or where
    the ranks disagree.
    """
    q, k, v = follow_autocast(q, k, v, lower=True)
    ranks = Ranks(_NAME, group, False)
    if ranks.last == 0:
        return attention(q, k, v, causal, window, scale=scale)
    try:
        _check(q, k, v, causal, window, order)
    except Exception as error:
        ranks.refuse(error)
    records = torch.is_grad_enabled()
    agreement = ranks.describe(
        {
            "the data type": str(q.dtype),
            "the device": q.device.type,
            "the shape of q": list(q.shape),
            "the shape of k": list(k.shape),
            "causal": causal,
            "window": window,
            "order": order,
            "recording gradients": records,
            "needs gradients": records and any(tensor.requires_grad for tensor in (q, k, v)),
        }
    )
    calls = agreement.calls(_ALIKE, "")
    if window is not None:
        before = rows_before(torch.cat([k, v], 2), window - 1, group)
        k, v = (torch.cat([past, own], 1) for past, own in zip(before.chunk(2, 2), (k, v), strict=True))
        return attention(q, k, v, causal, window, scale=scale)
    ring = _Ring(ranks, causal, order, q.shape[3] ** -0.5 if scale is None else scale)
    if any(call["needs gradients"] for call in calls):
        out: Tensor = _RingAttention.apply(ring, torch.zeros((), requires_grad=True), q, k, v)
        return out
    return ring.forward(q, k, v)[0]


@dataclass(frozen=True)
class _Part:
    """Which of a rank's queries see which of the keys of a piece; `diagonal`: those up to their own position."""

    rows: slice
    columns: slice
    diagonal: bool = False


@dataclass(frozen=True)
class _Ring:
    """A call on one rank: what it computes with each piece, and where the pieces go."""

    ranks: Ranks
    causal: bool
    order: Order
    scale: float

    @property
    def size(self) -> int:
        return self.ranks.last + 1

    @property
    def own(self) -> int:
        return self.ranks.position

    def sees(self, rank: int, source: int) -> bool:
        """Whether any query of `rank` sees a key of `source`."""
        return not self.causal or self.order == "zigzag" or source <= rank

    def part(self, source: int, length: int) -> _Part | None:
        """What this rank computes with the piece of `source`."""
        whole = slice(0, length)
        if not self.causal or source == self.own:
            return _Part(whole, whole, self.causal)
        if self.order == "zigzag":  # the first half of an earlier rank is past, its second half future; and so on
            half = length // 2
            return _Part(whole, slice(0, half)) if source < self.own else _Part(slice(half, length), whole)
        return _Part(whole, whole) if source < self.own else None

    def source(self, step: int) -> int:
        """Whose piece this rank holds at a step."""
        return (self.own - step) % self.size

    def after(self, rank: int, source: int) -> int:
        """Where the gradients of `source` go from `rank`: to the next rank that adds to them, or home."""
        following = (rank + 1) % self.size
        return following if self.sees(following, source) else source

    @property
    def visited(self) -> int:
        """How many ranks after this one compute with its piece."""
        return self.size - 1 if self.sees(0, self.size - 1) else self.size - 1 - self.own

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the logarithm of each row's sum [batch, heads, length]."""
        kernel, _ = kernels_of(q)
        batch, length, heads, _ = q.shape
        kind = torch.float32 if q.dtype in HALVES else q.dtype
        out = torch.zeros(q.shape, dtype=kind, device=q.device)
        logsumexp = torch.full((batch, heads, length), -torch.inf, dtype=kind, device=q.device)
        held = torch.stack([k, v])
        for step in range(self.size):
            incoming = self._pass_on(held, step)
            if part := self.part(self.source(step), length):
                keys, values = held[:, :, part.columns]
                options = None, part.diagonal, 0, 0.0, None, self.scale
                _merge(out[:, part.rows], logsumexp[:, :, part.rows], *kernel(q[:, part.rows], keys, values, *options))
            held = incoming.received().get("piece", held)
        return out.to(q.dtype), logsumexp

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of this rank's q, k and v."""
        _, kernel = kernels_of(q)
        length = q.shape[1]
        held = torch.stack([k, v])
        dq = torch.zeros(q.shape, dtype=logsumexp.dtype, device=q.device)
        own, carried = torch.zeros(held.shape, dtype=dq.dtype, device=q.device), None
        for step in range(self.size + 1):
            incoming = self._pass_on(held, step, carried, own)
            here = own if step == 0 else None
            if step < self.size and (part := self.part(self.source(step), length)):
                here = torch.zeros_like(own) if here is None else here
                keys, values = held[:, :, part.columns]
                options = part.diagonal, 0, 0.0, None, self.scale, False
                seen = out[:, part.rows], logsumexp[:, :, part.rows].contiguous(), dout[:, part.rows]
                of_q, of_k, of_v, _ = kernel(q[:, part.rows], keys, values, None, *seen, *options)
                dq[:, part.rows] += of_q
                here[0, :, part.columns] += of_k
                here[1, :, part.columns] += of_v
            arrived = incoming.received()
            if here is not None and "gradients" in arrived:
                here += arrived["gradients"]
            if "home" in arrived:
                own += arrived["home"]
            carried = here if step else None
            held = arrived.get("piece", held)
        return dq.to(q.dtype), own[0].to(k.dtype), own[1].to(v.dtype)

    def _pass_on(self, held: Tensor, step: int, carried: Tensor | None = None, own: Tensor | None = None) -> Exchange:
        """Begins to send the piece that is held at a step, and to receive the next one.

        In the backward pass, where `own` is given, also: to send the gradients `carried` of the piece of the step
        before; to receive those of the piece that is held now, and this rank's own from the last that adds to them.
        """
        sends, receives = [], {}
        following, previous = (self.own + 1) % self.size, (self.own - 1) % self.size
        if step < self.size - 1:
            if self.sees(following, self.source(step)):
                sends.append((held, following))
            if self.sees(self.own, self.source(step + 1)):
                receives["piece"] = held, previous
        if carried is not None:
            sends.append((carried, self.after(self.own, self.source(step - 1))))
        if own is not None and 1 < step < self.size and self.sees(self.own, self.source(step)):
            receives["gradients"] = own, previous
        if own is not None and 0 < self.visited == step - 1:
            receives["home"] = own, (self.own + self.visited) % self.size
        return self.ranks.exchange(sends, receives)


class _RingAttention(torch.autograd.Function):
    """The ring as one node of the graph on every rank. Saves its piece, the output, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, ring: _Ring, anchor: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, logsumexp = ring.forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.ring = ring
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        return None, None, *ctx.ring.backward(*ctx.saved_tensors, gradients[0])


def _merge(out: Tensor, logsumexp: Tensor, of_part: Tensor, sums: Tensor) -> None:
    """Adds the output over some more keys to `out`, in place: means weighted with their sums of exponentials."""
    total = torch.logaddexp(logsumexp, sums)
    past, new = ((part - total).exp_().transpose(1, 2).unsqueeze(-1) for part in (logsumexp, sums))
    out.mul_(past).add_(of_part * new)
    logsumexp.copy_(total)


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, order: str) -> None:
    """Only what the local op does not say; it says the rest about a row, before anything is sent."""
    if order not in get_args(Order):
        raise InputError(f"{_NAME}: argument order is {order!r}, expected one of {', '.join(get_args(Order))}")
    attention(q[:, :0], k[:, :0], v[:, :0], causal, window)
    if q.shape[1] != k.shape[1] or not q.shape[1]:
        raise InputError(
            f"{_NAME}: got {q.shape[1]} queries and {k.shape[1]} keys, expected as many of both, and at least one: the "
            "piece of this rank"
        )
    if order == "zigzag" and q.shape[1] % 2:
        raise InputError(f"{_NAME}: got {q.shape[1]} positions with order 'zigzag', expected an even number: two parts")
    if window is not None and (order == "zigzag" or not causal):
        raise InputError(
            f"{_NAME}: argument window is {window} with order {order!r}, causal {causal}: expected None, or "
            "'contiguous' and causal, where all ranks but the first have the same work already"
        )
