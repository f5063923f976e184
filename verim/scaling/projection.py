"""The search under the surface fit: variable projection, in batches.

At given exponents (α, β) the surface E + A/N^α + B/D^β is linear in E, A and B, so the best non-negative ones
follow in closed form (Golub & Pereyra 1973) and only two dimensions are left to search. The five-dimensional
search that L-BFGS makes on the same loss is conditioned worse by many orders of magnitude and stops early
(Besiroglu et al. 2404.10102 on the original fit). Three columns allow seven active sets, so the non-negative
least squares are solved exactly by trying them all, for every grid point and every resample at once.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

ActiveSet = tuple[int, ...]
ACTIVE_SETS: tuple[ActiveSet, ...] = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))

# Exponents searched. Published ones lie between 0.18 and 0.78; below 0.02 a power law is a logarithm over any
# ladder, above 2 it is a step.
EXPONENT_RANGE = (0.02, 2.0)
_GRID = 20
_ROUNDS = 80
_COLLINEAR = 1e-13  # below this share of its diagonal's product a Gram matrix's determinant is rounding
_QUIET = 4  # rounds in a row without the relative gain asked for end the search


class Solution(NamedTuple):
    """Coefficients of the columns (1, x^-α, z^-β), exponents, and relative residuals, one row a resample."""

    coefficients: Float[np.ndarray, "resamples 3"]
    exponents: Float[np.ndarray, "resamples 2"]
    residuals: Float[np.ndarray, "resamples runs"]


def nonnegative_least_squares(
    gram: Float[np.ndarray, "... 3 3"], moment: Float[np.ndarray, "... 3"]
) -> tuple[Float[np.ndarray, "... 3"], Float[np.ndarray, "..."]]:
    """Minimises c·gram·c − 2 moment·c over c ≥ 0, for stacks of problems: the c and the minimum.

    The minimiser over the orthant is the unconstrained minimiser of its own active set: that of all three
    columns where it is feasible, else the best feasible one among the smaller sets.
    """
    best = _solve(gram, moment, (0, 1, 2))
    outside = (best < 0).any(-1)
    if outside.any():
        best[outside] = _on_the_boundary(gram[outside], moment[outside])
    return best, -np.einsum("...i,...i->...", best, moment)


def _on_the_boundary(
    gram: Float[np.ndarray, "problems 3 3"], moment: Float[np.ndarray, "problems 3"]
) -> Float[np.ndarray, "problems 3"]:
    """The best feasible minimiser of the smaller active sets; the empty set is always feasible."""
    best = np.zeros(moment.shape)
    value = np.zeros(moment.shape[:-1])
    for active in ACTIVE_SETS:
        candidate = _solve(gram, moment, active)
        reached = -np.einsum("...i,...i->...", candidate, moment)
        better = (candidate >= 0).all(-1) & (reached < value)
        best = np.where(better[..., None], candidate, best)
        value = np.where(better, reached, value)
    return best


def _solve(
    gram: Float[np.ndarray, "... 3 3"], moment: Float[np.ndarray, "... 3"], active: ActiveSet
) -> Float[np.ndarray, "... 3"]:
    """The unconstrained minimiser with only the `active` columns, by Cramer's rule; −1 where singular."""
    out = np.zeros(moment.shape)
    g = [[gram[..., i, j] for j in active] for i in active]
    m = [moment[..., i] for i in active]
    if len(active) == 1:
        determinant, numerators = g[0][0], [m[0]]
    elif len(active) == 2:
        determinant = g[0][0] * g[1][1] - g[0][1] * g[1][0]
        numerators = [m[0] * g[1][1] - m[1] * g[0][1], m[1] * g[0][0] - m[0] * g[1][0]]
    else:
        cofactors = [
            [
                g[(i + 1) % 3][(j + 1) % 3] * g[(i + 2) % 3][(j + 2) % 3]
                - g[(i + 1) % 3][(j + 2) % 3] * g[(i + 2) % 3][(j + 1) % 3]
                for j in range(3)
            ]
            for i in range(3)
        ]
        determinant = g[0][0] * cofactors[0][0] + g[0][1] * cofactors[0][1] + g[0][2] * cofactors[0][2]
        numerators = [sum(cofactors[i][j] * m[i] for i in range(3)) for j in range(3)]
    singular = ~(determinant > _COLLINEAR * np.prod([g[i][i] for i in range(len(active))], axis=0))
    safe = np.where(singular, 1.0, determinant)
    for column, numerator in zip(active, numerators, strict=True):
        out[..., column] = np.where(singular, -1.0, numerator / safe)
    return out


def search(
    log_x: Float[np.ndarray, "runs"],
    log_z: Float[np.ndarray, "runs"],
    losses: Float[np.ndarray, "resamples runs"],
    weights: Float[np.ndarray, "resamples runs"],
    huber: float,
    gain: float = 1e-12,
) -> Solution:
    """Minimises Σ w·huber((c₀ + c₁ x^-α + c₂ z^-β)/L − 1) over c ≥ 0 and the exponents, for every resample.

    `log_x` and `log_z` are ln N and ln D less their means, which keeps the columns near 1. A grid over the
    exponents finds the basin by least squares; Levenberg–Marquardt on the projected residual (Kaufman's
    Jacobian) refines it, with the Huber weights renewed before every step: each step is then an exact
    projection of a weighted problem that lies above the Huber loss and touches it, so the loss never rises. It ends
    when no resample's loss falls by a share of `gain` any more.
    """
    theta = _grid_start(log_x, log_z, losses, weights)
    return _refine(log_x, log_z, losses, weights, huber, theta, gain)


def _columns(
    log_x: Float[np.ndarray, "runs"], log_z: Float[np.ndarray, "runs"], theta: Float[np.ndarray, "... 2"]
) -> Float[np.ndarray, "... 3 runs"]:
    exponents = np.exp(theta)
    shape = (*theta.shape[:-1], len(log_x))
    return np.stack(
        [
            np.ones(shape),
            np.exp(-exponents[..., :1] * log_x),
            np.exp(-exponents[..., 1:] * log_z),
        ],
        axis=-2,
    )


def _grid_start(
    log_x: Float[np.ndarray, "runs"],
    log_z: Float[np.ndarray, "runs"],
    losses: Float[np.ndarray, "resamples runs"],
    weights: Float[np.ndarray, "resamples runs"],
) -> Float[np.ndarray, "resamples 2"]:
    axis = np.linspace(np.log(EXPONENT_RANGE[0]), np.log(EXPONENT_RANGE[1]), _GRID)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    columns = _columns(log_x, log_z, grid)  # grid, 3, runs
    scale = weights / losses**2
    products = np.einsum("gir,gjr->rgij", columns, columns).reshape(len(log_x), -1)
    gram = (scale @ products).reshape(len(losses), len(grid), 3, 3)
    moment = ((weights / losses) @ columns.transpose(2, 0, 1).reshape(len(log_x), -1)).reshape(
        len(losses), len(grid), 3
    )
    _, value = nonnegative_least_squares(gram, moment)
    return grid[value.argmin(1)]


def _refine(
    log_x: Float[np.ndarray, "runs"],
    log_z: Float[np.ndarray, "runs"],
    losses: Float[np.ndarray, "resamples runs"],
    weights: Float[np.ndarray, "resamples runs"],
    huber: float,
    theta: Float[np.ndarray, "resamples 2"],
    gain: float,
) -> Solution:
    low, high = np.log(EXPONENT_RANGE)
    logs = np.stack([log_x, log_z])
    damping = np.full(len(losses), 1e-3)
    quiet = np.zeros(len(losses), dtype=np.int64)
    before = np.full(len(losses), np.inf)

    def project(
        theta: Float[np.ndarray, "resamples 2"], scale: Float[np.ndarray, "resamples runs"]
    ) -> tuple[Float[np.ndarray, "resamples 3"], Float[np.ndarray, "resamples 3 runs"]]:
        design = _columns(log_x, log_z, theta) / losses[:, None]
        weighted = design * scale[:, None]
        gram = np.einsum("rin,rjn->rij", weighted, weighted)
        moment = np.einsum("rin,rn->ri", weighted, scale)
        return nonnegative_least_squares(gram, moment)[0], design

    def residuals_of(
        c: Float[np.ndarray, "resamples 3"], design: Float[np.ndarray, "resamples 3 runs"]
    ) -> Float[np.ndarray, "resamples runs"]:
        return np.einsum("ri,rin->rn", c, design) - 1

    def scales(residuals: Float[np.ndarray, "resamples runs"]) -> Float[np.ndarray, "resamples runs"]:
        if not np.isfinite(huber):
            return np.sqrt(weights)
        return np.sqrt(weights * np.minimum(1.0, huber / np.maximum(np.abs(residuals), 1e-300)))

    def objective(residuals: Float[np.ndarray, "resamples runs"]) -> Float[np.ndarray, "resamples"]:
        size = np.abs(residuals)
        if np.isfinite(huber):
            return (weights * np.where(size <= huber, size**2, 2 * huber * size - huber**2)).sum(1)
        return (weights * size**2).sum(1)

    coefficients, design = project(theta, np.sqrt(weights))
    residuals = residuals_of(coefficients, design)
    value = objective(residuals)
    for _ in range(_ROUNDS):
        scale = scales(residuals)
        # weights anew at the current place: the projection at the same exponents already improves the loss
        coefficients, design = project(theta, scale)
        residuals = residuals_of(coefficients, design)
        value = objective(residuals)
        exponents = np.exp(theta)
        slope = -exponents[:, :, None] * logs * design[:, 1:] * coefficients[:, 1:, None] * scale[:, None]
        active = coefficients > 0
        weighted = np.where(active[:, :, None], design, 0.0) * scale[:, None]
        gram = np.einsum("rin,rjn->rij", weighted, weighted)
        gram = gram + np.eye(3) * (_COLLINEAR * np.trace(gram, axis1=1, axis2=2)[:, None] + ~active)[:, None]
        inside = np.linalg.solve(gram, np.einsum("rin,rkn->rik", weighted, slope))
        slope = slope - np.einsum("rin,rik->rkn", weighted, inside)
        curvature = np.einsum("rkn,rln->rkl", slope, slope)
        gradient = np.einsum("rkn,rn->rk", slope, scale * residuals)
        diagonal = np.einsum("rkk->rk", curvature)
        floor = 1e-12 * diagonal.sum(1, keepdims=True) + 1e-300
        lhs = curvature + np.eye(2) * (damping[:, None] * (diagonal + floor) + floor)[:, None]
        step = np.clip(-np.linalg.solve(lhs, gradient[..., None])[..., 0], -0.7, 0.7)
        trial = np.clip(theta + step, low, high)
        new_coefficients, new_design = project(trial, scale)
        new_residuals = residuals_of(new_coefficients, new_design)
        new_value = objective(new_residuals)
        better = new_value < value
        theta = np.where(better[:, None], trial, theta)
        residuals = np.where(better[:, None], new_residuals, residuals)
        coefficients = np.where(better[:, None], new_coefficients, coefficients)
        value = np.where(better, new_value, value)
        damping = np.where(better, np.maximum(damping * 0.2, 1e-9), np.minimum(damping * 5, 1e6))
        quiet = np.where(value < before * (1 - gain), 0, quiet + 1)
        before = value
        if (quiet >= _QUIET).all():
            break
    return Solution(coefficients, np.exp(theta), residuals)
