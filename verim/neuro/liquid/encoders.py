"""From values, rates and sound to spikes."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.spiking import Events


def poisson(
    rates: Float[Tensor, "batch length channels"], step: float, generator: torch.Generator | None = None
) -> Events:
    """Rate code: in each step of `step` milliseconds a channel fires with probability 1 - exp(-rate · step).

    `rates` in Hz. Raises `InputError` for negative or non-finite ones.
    """
    _check_rates(rates)
    likely = -torch.expm1(-rates * (step / 1000))
    drawn = torch.rand(rates.shape, generator=generator, dtype=rates.dtype, device=rates.device)
    return Events.from_dense((drawn < likely).to(rates.dtype), step)


def regular(rates: Float[Tensor, "batch length channels"], step: float) -> Events:
    """Deterministic rate code: perfect integrators of `rates` (Hz), which fire each time they have gathered one spike.

    At most one spike a step; what is more than that is lost.
    """
    _check_rates(rates)
    gathered = (rates.double() * (step / 1000)).clamp(max=1.0).cumsum(1)
    before = torch.nn.functional.pad(gathered, (0, 0, 1, 0))[:, :-1]
    return Events.from_dense((gathered.floor() > before.floor()).to(rates.dtype), step)


def latency(values: Float[Tensor, "batch channels"], length: int, step: float) -> Events:
    """Latency code: each channel fires once, the earlier the larger its value in [0, 1]; 1 at once, 0 never."""
    if values.dim() != 2 or not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError("latency: values must be [batch, channels] within 0 … 1; scale them first")
    rows, channels = (values > 0).nonzero(as_tuple=True)
    steps = ((1 - values[rows, channels]) * (length - 1)).round().long()
    return Events.from_times(rows, steps, channels, (len(values), length, values.shape[1]), step)


@dataclass(frozen=True)
class Cochlea:
    """A filterbank like the ear's: gammatone filters on the ERB scale, half-wave rectified, compressed, as rates.

    The response of order 4 around f is 1 / (1 + i (ν - f) / b)⁴ with b = 1.019 ERB(f) and ERB(f) = 24.7 (1 + 0.00437
    f) (Patterson 1992; Glasberg & Moore 1990), applied in the frequency domain. Rectified outputs are averaged over
    `step`, divided by the loudest of the recording, raised to `exponent` and scaled to `rate`.
    """

    sample_rate: float
    channels: int = 32
    lowest: float = 100.0
    highest: float = 3800.0
    step: float = 1.0
    exponent: float = 0.3
    rate: float = 150.0

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest <= self.sample_rate / 2:
            raise InputError(
                f"Cochlea: lowest and highest are {self.lowest} and {self.highest} Hz, expected a rising pair up to "
                f"half the sample rate, {self.sample_rate / 2}"
            )
        if self.channels < 1 or self.step <= 0 or self.exponent <= 0 or self.rate <= 0:
            raise InputError("Cochlea: channels, step, exponent and rate must be positive")

    def frequencies(self) -> Float[Tensor, "channels"]:
        """Centre frequencies in Hz, evenly spaced in numbers of ERBs, lowest first."""
        low, high = (21.4 * math.log10(1 + 0.00437 * f) for f in (self.lowest, self.highest))
        numbers = torch.linspace(low, high, self.channels, dtype=torch.float64)
        return (10 ** (numbers / 21.4) - 1) / 0.00437

    def rates(self, sound: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch length channels"]:
        """Rates in Hz, one step after the other; a silent recording has none."""
        if sound.dim() != 2 or not sound.is_floating_point() or not bool(sound.isfinite().all()):
            raise InputError("Cochlea: sound must be finite floating-point samples [batch, samples]")
        samples = sound.shape[1]
        hop = max(1, round(self.sample_rate * self.step / 1000))
        size = 2 ** math.ceil(math.log2(max(samples + round(0.05 * self.sample_rate), 2)))
        spectrum = torch.fft.rfft(sound.double(), size)
        ladder = torch.fft.rfftfreq(size, 1 / self.sample_rate, dtype=torch.float64)
        steps = samples // hop
        out = sound.new_zeros(len(sound), steps, self.channels)
        for channel, centre in enumerate(self.frequencies().tolist()):
            width = 1.019 * 24.7 * (1 + 0.00437 * centre)
            response = 1 / (1 + 1j * (ladder - centre) / width) ** 4
            wave = torch.fft.irfft(spectrum * response, size)[:, : steps * hop].clamp(min=0)
            out[:, :, channel] = wave.view(len(sound), steps, hop).mean(2).to(out)
        loudest = out.amax((1, 2), keepdim=True)
        return self.rate * (out / loudest.clamp(min=torch.finfo(out.dtype).tiny)) ** self.exponent * (loudest > 0)


def _check_rates(rates: Tensor) -> None:
    if rates.dim() != 3 or not rates.is_floating_point():
        raise InputError(
            f"rates have shape {tuple(rates.shape)} and type {rates.dtype}, expected [batch, length, channels]"
        )
    if not bool((rates.isfinite() & (rates >= 0)).all()):
        raise InputError("rates hold NaN, infinity or negative numbers, expected Hz, 0 or more")
