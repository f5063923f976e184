"""RWKV's token shift: every channel is a mean of what it is now and what it was one position before."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.nn.along import HERE, Along


class TokenShift(nn.Module):
    """out_i = previous + mix_i ⊙ (x - previous), for several mixes of the same input at once.

    `mix` [mixes, width]: 1 takes the present alone, 0 the position before. RWKV-4 writes it so (Peng et al. 2023,
    arXiv 2305.13048, eq. 11 to 15, μ = mix); RWKV-7 gives the share of the past (Peng et al. 2025, arXiv
    2503.14456, section 4.1, μ = 1 - mix).
    """

    along: Along = HERE

    def __init__(self, mix: Float[Tensor, "mixes width"]) -> None:
        super().__init__()
        self.mix = nn.Parameter(mix)

    def forward(
        self, x: Float[Tensor, "batch length width"], last: Float[Tensor, "batch width"] | None = None
    ) -> tuple[tuple[Float[Tensor, "batch length width"], ...], Float[Tensor, "batch width"]]:
        """The mixes of `x`, and its last position, to go on from. `last` is the one before `x`; None: zeros."""
        before = self.along.row_before(x) if last is None else last
        if x.shape[1] == 1:
            previous, last = before[:, None], x[:, 0]
        else:
            previous = torch.cat([before[:, None], x[:, :-1]], dim=1)
            last = x[:, -1].clone()  # a view would keep all of x
        return torch.lerp(previous, x, self.mix[:, None, None]).unbind(), last


def rising(width: int) -> Float[Tensor, "width"]:
    """i / width for channel i: what the initial mixes of all RWKV models are powers of."""
    return torch.arange(width) / width
