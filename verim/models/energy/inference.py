"""Inference with an energy: the y of lowest energy, or y drawn with probability ∝ exp(−E(y) / T).

An energy here is any function of a batch [batch, *shape] that gives a number a row [batch]; what is known goes into
it: `lambda y: model(x, y)`. No partition function is asked for: only differences and gradients of E count (LeCun,
Chopra, Hadsell, Ranzato & Huang 2006, A tutorial on energy-based learning, §1).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verim.errors import InputError

Energy = Callable[[Tensor], Tensor]


def slope(energy: Energy, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """∇E(y) of every row, also where gradients are off around it."""
    with torch.enable_grad():
        place = y.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(place).sum(), place)
    return gradient


def descend(
    energy: Energy,
    start: Float[Tensor, "batch *shape"],
    steps: int,
    rate: float,
    free: Bool[Tensor, "..."] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Float[Tensor, "batch *shape"]:
    """y ← y − rate · ∇E(y), `steps` times from `start`: argmin E, as far as its valley leads.

    Where `free` (broadcast to y) is false y stays as it is; y is kept within `bounds`. Raises `InputError` where the
    descent diverges.
    """
    return langevin(energy, start, steps, rate, (0.0, 0.0), None, free, bounds)


def langevin(
    energy: Energy,
    start: Float[Tensor, "batch *shape"],
    steps: int,
    rate: float,
    temperatures: tuple[float, float] = (1.0, 1.0),
    generator: torch.Generator | None = None,
    free: Bool[Tensor, "..."] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Float[Tensor, "batch *shape"]:
    """y ← y − rate · ∇E(y) + √(2 · rate · T) · n, n normal: for a small rate, draws from exp(−E / T) / Z.

    T goes from the first to the last of `temperatures` in equal ratios (annealing: from hot, where all is reachable,
    to cold, where the low valleys are); from or to 0 in equal steps. The bias is of the order of the rate: on
    E = y² / 2 the variance is T / (1 − rate / 2) instead of T. Unadjusted Langevin (Welling & Teh 2011 without
    mini-batches; Neal 2011, eq. 5.26, with rate = ε² / 2). Raises `InputError` where it diverges.
    """
    _check_steps(steps)
    if not rate > 0 or not min(temperatures) >= 0:
        raise InputError(f"rate and temperatures: got {rate} and {temperatures}, expected more than 0, and 0 or more")
    y = start.detach().clone()
    for step in range(steps):
        temperature = annealed(temperatures, step, steps)
        change = -rate * slope(energy, y)
        if temperature > 0:
            noise = torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=generator)
            change = change + math.sqrt(2 * rate * temperature) * noise
        y = y + (change if free is None else torch.where(free, change, 0))
        if bounds is not None:
            y = y.clamp(*bounds)
    if not bool(y.isfinite().all()):
        raise InputError(f"rate: {rate} makes the descent of the energy diverge in {steps} steps; take a smaller one")
    return y


def annealed(temperatures: tuple[float, float], step: int, steps: int) -> float:
    """The temperature of `step`: the first at step 0, the last at step `steps` − 1."""
    first, last = temperatures
    share = step / max(steps - 1, 1)
    if min(first, last) == 0:
        return first + share * (last - first)
    return math.exp((1 - share) * math.log(first) + share * math.log(last))


@torch.no_grad()
def gibbs(
    energy: Energy,
    start: Float[Tensor, "batch units"],
    sweeps: int,
    temperatures: tuple[float, float] = (1.0, 1.0),
    generator: torch.Generator | None = None,
    free: Bool[Tensor, "units"] | None = None,
) -> Float[Tensor, "batch units"]:
    """Draws y of zeros and ones, one unit after the other: P(y_i = 1 | others) = σ((E(y_i = 0) − E(y_i = 1)) / T).

    `sweeps` passes over the units that are `free`, T annealed over the sweeps; at T = 0 each unit takes its lower
    energy. For any energy; `RestrictedBoltzmannMachine` draws all units of a layer at once. (Geman & Geman 1984.)
    """
    _check_steps(sweeps)
    y = start.clone()
    if y.dim() != 2 or not bool(((y == 0) | (y == 1)).all()):
        raise InputError(f"start: got shape {tuple(y.shape)}, expected zeros and ones [batch, units]")
    units = range(y.shape[1]) if free is None else free.nonzero()[:, 0].tolist()
    for sweep in range(sweeps):
        temperature = annealed(temperatures, sweep, sweeps)
        for unit in units:
            y[:, unit] = 0
            without = energy(y).clone()  # an energy may return a part of y itself
            y[:, unit] = 1
            gain = without - energy(y)
            draw = torch.rand(gain.shape, dtype=gain.dtype, device=gain.device, generator=generator)
            one = draw < torch.sigmoid(gain / temperature) if temperature > 0 else gain > 0
            y[:, unit] = one.to(y.dtype)
    return y


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise InputError(f"steps: got {steps}, expected 0 or more")
