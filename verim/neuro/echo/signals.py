"""Signals that echo state networks are judged on."""

import math

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

LORENZ_EXPONENT = 0.9056  # the largest Lyapunov exponent of `lorenz` (Sprott 2003, Chaos and Time-Series Analysis)


@njit
def _mackey_glass(history: np.ndarray, length: int, steps: int, delay: int, skipped: int) -> np.ndarray:
    values = np.empty(length)
    x, width = history[-1], 1 / steps
    ring, at = history.copy(), 0  # ring[at]: the value so long ago
    for t in range(length + skipped):
        for _ in range(steps):
            delayed = ring[at]
            ring[at] = x
            at = (at + 1) % delay
            x += width * (0.2 * delayed / (1 + delayed**10) - 0.1 * x)
        if t >= skipped:
            values[t - skipped] = x
    return values


def mackey_glass(length: int, seed: int = 0, tau: float = 17.0) -> Float[Tensor, "length"]:
    """dx/dt = 0.2 x(t-τ) / (1 + x(t-τ)¹⁰) - 0.1 x, sampled every time unit, by Euler steps of 0.1 (Jaeger 2001).

    From a history drawn by `seed`, after 1000 units. Chaotic above τ = 16.8.
    """
    history = 1.2 + 0.2 * (np.random.default_rng(seed).random(round(10 * tau)) - 0.5)
    return torch.from_numpy(_mackey_glass(history, length, 10, len(history), 1000))


def narma10(length: int, seed: int = 0) -> tuple[Float[Tensor, "length"], Float[Tensor, "length"]]:
    """Input u uniform in 0 … 0.5 and y of the tenth-order system (Atiya & Parlos 2000, IEEE Trans. Neural Networks 11).

        y_{t+1} = 0.3 y_t + 0.05 y_t Σ_{i<10} y_{t-i} + 1.5 u_{t-9} u_t + 0.1

    Returned so that the target at t is y_{t+1}. A draw that runs away, as a few do, is drawn again.
    """
    generator = np.random.default_rng(seed)
    while True:
        u, y = generator.uniform(0, 0.5, length + 200), np.zeros(length + 201)
        for t in range(9, length + 200):
            y[t + 1] = min(2, 0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1)
        if y.max() < 1:
            return torch.from_numpy(u[200:]), torch.from_numpy(y[201:])


def lorenz(length: int, seed: int = 0, step: float = 0.02) -> Float[Tensor, "length 3"]:
    """Lorenz's system, σ = 10, ρ = 28, β = 8/3, sampled every `step`, by Runge and Kutta at half of it."""

    def slope(p: Tensor) -> Tensor:
        x, y, z = p
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    point = torch.tensor([1.0, 1.0, 25.0], dtype=torch.float64)
    point = point + torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    width, values, skipped = step / 2, [], math.ceil(10 / step)
    for t in range(length + skipped):
        for _ in range(2):
            a = slope(point)
            b = slope(point + width / 2 * a)
            c = slope(point + width / 2 * b)
            point = point + width / 6 * (a + 2 * b + 2 * c + slope(point + width * c))
        if t >= skipped:
            values.append(point)
    return torch.stack(values)
