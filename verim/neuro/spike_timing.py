"""Spike-timing-dependent plasticity: a synapse grows when its source fires just before its target, shrinks after."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops import linear_recurrence


@dataclass(frozen=True)
class SpikeTiming:
    """The pair rule of Song, Miller & Abbott 2000 (Nature Neuroscience 3, 919), over all pairs of spikes.

        Δw_ij = Σ over pairs of F(t_j - t_i),   F(Δ) = `growth` exp(-Δ / `growth_time`)        for Δ > 0
                                                F(Δ) = -`decline` exp(Δ / `decline_time`)      for Δ < 0

    with i before (source) and j after (target); spikes of the same step change nothing. Times are in milliseconds.
    With `is_soft`, growth is scaled by 1 - w / `most` and decline by w / `most` (van Rossum, Bi & Turrigiano 2000),
    taken before the update; else weights are cut at 0 and `most`.
    """

    growth: float = 0.005
    decline: float = 0.00525
    growth_time: float = 20.0
    decline_time: float = 20.0
    most: float = 1.0
    is_soft: bool = False
    step: float = 1.0

    def __post_init__(self) -> None:
        for name in ("growth_time", "decline_time", "most", "step"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"SpikeTiming: {name} is {getattr(self, name)}, expected a positive finite number")
        if not (self.growth >= 0 and self.decline >= 0):
            raise InputError("SpikeTiming: growth and decline must be 0 or more")

    def changes(
        self, before: Float[Tensor, "batch length sources"], after: Float[Tensor, "batch length targets"]
    ) -> tuple[Float[Tensor, "sources targets"], Float[Tensor, "sources targets"]]:
        """Growth and decline (both 0 or more) of each pair, summed over the rows of the batch.

        The traces of all past spikes are two scans, the sums over pairs two matrix products.
        """
        if before.dim() != 3 or after.dim() != 3 or before.shape[:2] != after.shape[:2]:
            raise InputError(
                f"SpikeTiming: spikes have shapes {tuple(before.shape)} and {tuple(after.shape)}, expected "
                "[batch, length, sources] and [batch, length, targets]"
            )
        if not all(bool(((spikes == 0) | (spikes == 1)).all()) for spikes in (before, after)):
            raise InputError("SpikeTiming: spikes hold something else than 0 and 1")
        grown = torch.einsum("bts,btn->sn", self._trace(before, self.growth_time), after)
        shrunk = torch.einsum("bts,btn->sn", before, self._trace(after, self.decline_time))
        return self.growth * grown, self.decline * shrunk

    def update(
        self,
        weights: Float[Tensor, "sources targets"],
        before: Float[Tensor, "batch length sources"],
        after: Float[Tensor, "batch length targets"],
    ) -> Float[Tensor, "sources targets"]:
        """The weights after these spikes, within 0 … `most`."""
        if weights.shape != (before.shape[2], after.shape[2]) or not bool(weights.isfinite().all()):
            raise InputError(
                f"SpikeTiming: weights have shape {tuple(weights.shape)}, expected finite numbers "
                f"{(before.shape[2], after.shape[2])}, sources by targets"
            )
        grown, shrunk = self.changes(before, after)
        if self.is_soft:
            grown, shrunk = grown * (1 - weights / self.most), shrunk * (weights / self.most)
        return (weights + grown - shrunk).clamp(0, self.most)

    def _trace(self, spikes: Tensor, time: float) -> Tensor:
        """Σ over the spikes before each step of exp(-age / time)."""
        decay = spikes.new_full((spikes.shape[2],), math.exp(-self.step / time))
        return linear_recurrence(decay, spikes) - spikes
