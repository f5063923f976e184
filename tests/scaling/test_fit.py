"""The surface fit on surfaces whose parameters are known."""

import numpy as np
import pytest

from verim.scaling.fit import fit_law
from verim.scaling.laws import Law

TRUTH = Law(E=1.0, A=60.0, B=40.0, alpha=0.42, beta=0.27)


def ladder(law: Law, noise: float = 0.0, seed: int = 0, sizes: int = 6) -> tuple[np.ndarray, ...]:
    """Three budgets of `sizes` runs around each optimum, with FLOPs that are not quite 6ND: N, D, C, L."""
    generator = np.random.default_rng(seed)
    rows = []
    for C in (3e11, 1e12, 3e12):
        centre = law.optimum(C).N * np.exp(generator.uniform(-0.3, 0.3))
        for step in np.arange(sizes) - (sizes - 1) / 2:
            N = centre * 1.585**step
            rows.append((N, C / (6 + 0.6 * (N / 1e4) ** -0.3) / N, C))
    N, D, C = np.array(rows).T
    return N, D, C, law.loss(N, D) * np.exp(noise * generator.standard_normal(len(N)))


def test_noise_free_surfaces_are_recovered() -> None:
    generator = np.random.default_rng(3)
    for _ in range(10):
        E, alpha, beta = generator.uniform((0.8, 0.3, 0.2), (1.2, 0.6, 0.4))
        law = Law(E, *generator.uniform(20, 200, 2), alpha, beta)
        N, D, _, L = ladder(law)
        fitted = fit_law(N, D, L, resamples=20).law
        for name in ("E", "A", "B", "alpha", "beta"):
            assert getattr(fitted, name) == pytest.approx(getattr(law, name), rel=1e-6)
