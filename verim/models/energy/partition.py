"""ln Z of a restricted Boltzmann machine: exactly by enumeration, or estimated by annealed importance sampling."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from verim.errors import InputError
from verim.models.energy.boltzmann import RestrictedBoltzmannMachine, bernoulli

ENUMERABLE = 20
_AT_ONCE = 1 << 12


class LogPartition(NamedTuple):
    """ln Z, and the standard error of the estimate, which is also the relative one of Z."""

    value: float
    error: float


@torch.no_grad()
def exact_log_partition(machine: RestrictedBoltzmannMachine) -> float:
    """ln Z = ln Σ_h exp(c·h) Π_i (1 + exp(b_i + h·W_i)) over all 2^hidden states, in float64.

    Raises `InputError` for more than `ENUMERABLE` hidden units.
    """
    if machine.hidden > ENUMERABLE:
        raise InputError(
            f"hidden: got {machine.hidden} units, expected at most {ENUMERABLE} to enumerate; use "
            "annealed_log_partition"
        )
    places = torch.arange(machine.hidden, device=machine.weights.device)
    parts = []
    for states in torch.arange(1 << machine.hidden, device=machine.weights.device).split(_AT_ONCE):
        h = (states[:, None] >> places & 1).double()
        logits = h @ machine.weights.double() + machine.visible_bias.double()
        parts.append((h @ machine.hidden_bias.double() + _summed(machine, logits)).logsumexp(0))
    return float(torch.stack(parts).logsumexp(0))


@torch.no_grad()
def annealed_log_partition(
    machine: RestrictedBoltzmannMachine,
    temperatures: int = 1000,
    chains: int = 500,
    base: Float[Tensor, "visible"] | None = None,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """ln Z by annealed importance sampling (Neal 2001; Salakhutdinov & Murray 2008, §4.1).

    Between a machine of independent visible units with biases `base` (by default the machine's; those of the data's
    means are better), whose Z is known, and this one lie `temperatures` densities
    p_k(v) ∝ exp(((1 − β_k) base + β_k b)·v) Π_j (1 + exp(β_k (c_j + W_j·v))), β from 0 to 1 in equal steps. A chain
    collects the ratios p_k / p_(k−1) on its way; the mean of their products is Z over the base's.
    """
    if temperatures < 2 or chains < 2:
        raise InputError(f"temperatures, chains: got {temperatures} and {chains}, expected at least 2 of each")
    b = machine.visible_bias
    base = b if base is None else base.to(b)
    if base.shape != b.shape:
        raise InputError(f"base: got shape {tuple(base.shape)}, expected [{machine.visible}]")
    v = machine.draw_visible(base.expand(chains, -1), generator)
    ratios = torch.zeros(chains, dtype=torch.float64, device=v.device)
    betas = torch.linspace(0, 1, temperatures, dtype=torch.float64).tolist()
    for before, beta in pairwise(betas):
        hidden = machine.hidden_input(v)
        change = (beta - before) * (v @ (b - base)) + (softplus(beta * hidden) - softplus(before * hidden)).sum(-1)
        ratios += change.double()
        h = bernoulli((beta * hidden).sigmoid(), generator)
        v = machine.draw_visible((1 - beta) * base + beta * (h @ machine.weights + b), generator)
    first = float(_summed(machine, base.double()[None])) + machine.hidden * math.log(2)
    shares = (ratios - ratios.max()).exp()
    error = float(shares.std() / shares.mean()) / math.sqrt(chains)
    return LogPartition(first + float(ratios.logsumexp(0)) - math.log(chains), error)


def _summed(machine: RestrictedBoltzmannMachine, logits: Float[Tensor, "batch visible"]) -> Float[Tensor, "batch"]:
    """ln of the sum over visible states of exp(logits · v)."""
    total = softplus(logits[:, : machine.pixels]).sum(-1)
    return total + logits[:, machine.pixels :].logsumexp(-1) if machine.labels else total
