"""Losses that fit exp(−E(x)) / Z to data without Z.

The energy is a function of a batch [batch, *shape] that gives a number a row; every loss is a mean over rows, with
gradients to the energy's weights.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.models.energy.inference import Energy


def contrastive_divergence(
    energy: Energy, data: Float[Tensor, "batch *shape"], negatives: Float[Tensor, "others *shape"], penalty: float = 0.0
) -> Float[Tensor, ""]:
    """E(data) − E(negatives) + penalty · (E(data)² + E(negatives)²), in means.

    Its gradient is that of −ln p(data) where the `negatives` are draws of the model (Hinton 2002, eq. 5). After k
    steps of a sampler that began at the data it is CD-k; from chains that go on from one update to the next,
    persistent CD (Tieleman 2008). The penalty (Du & Mordatch 2019, §3.3) keeps energies of free height near 0.
    """
    low, high = energy(data), energy(negatives.detach())
    loss = low.mean() - high.mean()
    return loss + penalty * (low.square().mean() + high.square().mean()) if penalty else loss


def score_matching(energy: Energy, data: Float[Tensor, "batch *shape"]) -> Float[Tensor, ""]:
    """½ ‖∇E‖² − ΔE, in the mean: ½ E‖∇E − ∇E_data‖² up to a constant (Hyvärinen 2005, theorem 1).

    The trace ΔE of the Hessian takes a backward pass a dimension: for few dimensions; else `sliced_score_matching`.
    """
    place, gradient = _slope_with_graph(energy, data)
    flat = gradient.flatten(1)
    trace = torch.zeros((), dtype=data.dtype, device=data.device)
    for dimension in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, dimension].sum(), place, create_graph=True)
        trace = trace + row.flatten(1)[:, dimension].mean()
    return flat.square().sum(1).mean() / 2 - trace


def sliced_score_matching(
    energy: Energy,
    data: Float[Tensor, "batch *shape"],
    slices: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """½ ‖∇E‖² − vᵀ∇²E v for random signs v, in the mean over rows and `slices`: `score_matching` in expectation.

    One Hessian-vector product a slice (Song, Garg, Shi & Ermon 2019, eq. 8, with reduced variance).
    """
    if slices < 1:
        raise InputError(f"slices: got {slices}, expected at least 1")
    place, gradient = _slope_with_graph(energy, data)
    curvature = torch.zeros((), dtype=data.dtype, device=data.device)
    for _ in range(slices):
        signs = torch.randint(0, 2, data.shape, generator=generator, device=data.device).to(data.dtype) * 2 - 1
        (product,) = torch.autograd.grad((gradient * signs).sum(), place, create_graph=True)
        curvature = curvature + (product * signs).flatten(1).sum(1).mean()
    return gradient.flatten(1).square().sum(1).mean() / 2 - curvature / slices


def denoising_score_matching(
    energy: Energy,
    data: Float[Tensor, "batch *shape"],
    deviation: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """½ ‖σ ∇E(x + σn) − n‖², n normal, in the mean: fits the density of the data blurred by σ = `deviation`.

    The score of the blur at x + σn is −n / σ (Vincent 2011, eq. 9 and 10, times σ², so that losses of several σ are of
    one size).
    """
    if not deviation > 0:
        raise InputError(f"deviation: got {deviation}, expected more than 0")
    noise = torch.randn(data.shape, dtype=data.dtype, device=data.device, generator=generator)
    _, gradient = _slope_with_graph(energy, data + deviation * noise)
    return (deviation * gradient - noise).flatten(1).square().sum(1).mean() / 2


def noise_contrastive(
    energy: Energy,
    data: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "others *shape"],
    data_log_density: Float[Tensor, "batch"],
    noise_log_density: Float[Tensor, "others"],
) -> Float[Tensor, ""]:
    """−E ln σ(G(data)) − ν E ln(1 − σ(G(noise))), where G = −E − ln p_noise − ln ν and ν = noise rows a data row.

    Tells data from draws of a known density, given as ln p_noise at the data and at the noise. The energy must be able
    to take any height: at the optimum exp(−E) is normalised, the constant of the energy has become ln Z (Gutmann &
    Hyvärinen 2010, eq. 3 to 5, with ν as in 2012).
    """
    if data_log_density.shape != data.shape[:1] or noise_log_density.shape != noise.shape[:1]:
        raise InputError(
            f"log densities: got shapes {tuple(data_log_density.shape)} and {tuple(noise_log_density.shape)}, expected "
            f"a number for each of {len(data)} rows of data and {len(noise)} of noise"
        )
    ratio = len(noise) / len(data)
    of_data = -energy(data) - data_log_density - math.log(ratio)
    of_noise = -energy(noise) - noise_log_density - math.log(ratio)
    softplus = torch.nn.functional.softplus
    return softplus(-of_data).mean() + ratio * softplus(of_noise).mean()


def _slope_with_graph(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf of the value of x, and ∇E there with the graph to the weights."""
    place = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(place).sum(), place, create_graph=True)
    return place, gradient
