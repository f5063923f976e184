"""The definition of attention, in plain PyTorch, any floating-point data type: all scores at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.ops.attention.dropout import kept, row_words
from verim.ops.attention.visible import visible


def attention_reference(
    q: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads head_dim"],
    bias: Float[Tensor, "#batch #heads #length #keys"] | None,
    causal: bool,
    window: int,
    dropout: float,
    seed: Int[Tensor, ""] | None,
    scale: float,
    spans: Int[Tensor, "2 batch length"] | None = None,
) -> Float[Tensor, "batch length heads head_dim"]:
    """See `verim.ops.attention`; `window` 0 means none, `spans` are those of `spans_of`, with `causal`."""
    batch, length, heads, _ = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    k, v = (tensor.repeat_interleave(group, 2) for tensor in (k, v))
    scores = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    if bias is not None:
        scores = scores + bias
    seen = visible(range(length), range(keys), keys - length, causal, window, q.device)
    scores = scores.masked_fill(~seen, -torch.inf)
    if spans is not None:
        scores = scores.masked_fill(torch.arange(keys, device=q.device) < spans[0][:, None, :, None], -torch.inf)
    blind = (scores == -torch.inf).all(-1, keepdim=True)  # rows that see nothing give zeros
    shares = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    if dropout:
        assert seed is not None, "dropout draws from a seed"
        keep = kept(row_words(seed, batch, heads, length, q.device), 0, keys, dropout)
        shares = shares.masked_fill(~keep, 0) / (1 - dropout)
    return torch.einsum("bhij,bjhd->bihd", shares, v)
