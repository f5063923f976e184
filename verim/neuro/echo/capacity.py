"""How much of its past input a reservoir holds."""

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError


def memory_profile(
    states: Float[Tensor, "length features"], u: Float[Tensor, "length"], delays: int, washout: int = 100
) -> Float[Tensor, "delays"]:
    """The share of the variance of u_{t-k} that a linear readout of the states explains, k = 1 … `delays`.

    MC_k = r²(u_{t-k}, ŷ_k), whose sum over all k is at most the number of units (Jaeger 2001, GMD report 152,
    proposition 2), for independent inputs. Least squares sees chance agreement too: what is explained is taken on the
    rows that are not fitted, alternating halves, so that the sum is not above the bound by overfitting.
    """
    if len(states) != len(u) or washout < delays or len(u) < washout + 4 * states.shape[1]:
        raise InputError(
            f"memory_profile: {len(states)} states, {len(u)} inputs, washout {washout}, {delays} delays: expected as "
            "many inputs, a washout not shorter than the delays, and four steps a unit after it"
        )
    y = torch.stack([u.double().roll(k) for k in range(1, delays + 1)], 1)[washout:]
    x = states.double()[washout:]
    half = len(x) // 2
    explained = torch.zeros(delays, dtype=torch.float64)
    for fitted, judged in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        mean, middle = x[fitted].mean(0), y[fitted].mean(0)
        weights = torch.linalg.lstsq(x[fitted] - mean, y[fitted] - middle, driver="gelsd", rcond=1e-10).solution
        error = (x[judged] - mean) @ weights + middle - y[judged]
        explained += (1 - error.square().mean(0) / y[judged].var(0, correction=0)).clamp_min(0) / 2
    return explained
