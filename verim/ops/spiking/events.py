"""Spikes as events: who fired when, without the zeros in between."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verim.errors import InputError


@dataclass(frozen=True)
class Events:
    """Spikes of `channels` channels over some steps, for a batch of independent rows.

    - `channel` [spikes]: who fired, row after row, in a row step after step.
    - `offsets` [batch, length + 1]: the spikes of row b at step t are `channel[offsets[b, t] : offsets[b, t + 1]]`.
    - `step`: a step's milliseconds.

    >>> events = Events.from_dense(torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]]), step=1.0)
    >>> events.channel.tolist(), events.offsets.tolist()
    ([0, 0, 1], [[0, 1, 1, 3]])
    """

    channel: Int[Tensor, "spikes"]
    offsets: Int[Tensor, "batch steps"]
    channels: int
    step: float

    def __len__(self) -> int:
        return len(self.channel)

    @property
    def batch(self) -> int:
        """Independent rows."""
        return len(self.offsets)

    @property
    def length(self) -> int:
        """Steps."""
        return self.offsets.shape[1] - 1

    @classmethod
    def from_dense(cls, spikes: Float[Tensor, "batch length channels"], step: float) -> "Events":
        """Ones are spikes; raises `InputError` for anything but zeros and ones."""
        if spikes.dim() != 3:
            raise InputError(f"Events: spikes have shape {tuple(spikes.shape)}, expected [batch, length, channels]")
        if not bool(((spikes == 0) | (spikes == 1)).all()):
            raise InputError(
                "Events: spikes hold something else than 0 and 1; graded input goes in as `current`, NaN nowhere"
            )
        found = spikes.detach() != 0
        offsets = _offsets(found.sum(2))
        return cls(found.nonzero()[:, 2].to(torch.int32), offsets, spikes.shape[2], step)

    @classmethod
    def from_times(
        cls,
        rows: Int[Tensor, "spikes"],
        steps: Int[Tensor, "spikes"],
        channel: Int[Tensor, "spikes"],
        shape: tuple[int, int, int],
        step: float,
    ) -> "Events":
        """Spikes given one by one in any order, once each; `shape` is [batch, length, channels]."""
        batch, length, channels = shape
        for name, values, size in (("rows", rows, batch), ("steps", steps, length), ("channel", channel, channels)):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < size:
                raise InputError(f"Events: {name} must lie in 0 … {size - 1}")
        keys = torch.unique((rows.long() * length + steps.long()) * channels + channel.long())
        counts = torch.bincount(keys // channels, minlength=batch * length)
        return cls((keys % channels).to(torch.int32), _offsets(counts.view(batch, length)), channels, step)

    def rows_and_steps(self) -> tuple[Int[Tensor, "spikes"], Int[Tensor, "spikes"]]:
        """The row and the step of each spike."""
        places = torch.arange(self.batch * self.length, device=self.channel.device)
        places = torch.repeat_interleave(places, self.offsets.diff(dim=1).flatten())
        return places // max(self.length, 1), places % max(self.length, 1)

    def dense(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "batch length channels"]:
        """Zeros and ones."""
        spikes = torch.zeros(self.batch, self.length, self.channels, dtype=dtype, device=self.channel.device)
        rows, steps = self.rows_and_steps()
        spikes[rows, steps, self.channel.long()] = 1
        return spikes

    def counts(self) -> Int[Tensor, "batch channels"]:
        """Spikes of each channel."""
        rows, _ = self.rows_and_steps()
        places = rows * self.channels + self.channel
        return torch.bincount(places, minlength=self.batch * self.channels).view(self.batch, self.channels)

    def rates(self) -> Float[Tensor, "batch channels"]:
        """Spikes of each channel a second (Hz)."""
        return self.counts() / (self.length * self.step / 1000)


def _offsets(counts: Int[Tensor, "batch length"]) -> Int[Tensor, "batch steps"]:
    ends = counts.flatten().cumsum(0).view(counts.shape)
    starts = torch.cat([ends.new_zeros(1), ends[:-1, -1]])[: len(counts), None] if counts.shape[1] else None
    if starts is None:
        return torch.zeros(len(counts), 1, dtype=torch.int64, device=counts.device)
    return torch.cat([starts, ends], 1)
