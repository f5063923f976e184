"""The laws of Kaplan et al. (2001.08361): pure power laws without a floor, in non-embedding parameters.

Their N leaves out the embeddings and the positions (ours, `non_embedding`, leaves out the input embedding and
counts the head: `verim.scaling.bridge` converts). Losses are nats a token of WebText2, with GPT-2's tokens.
Compute C_min is what the run would have cost at a batch far below the critical one, in PF-days = 8.64e19 FLOPs.
"""

import math
from dataclasses import dataclass

from verim.errors import InputError
from verim.scaling.laws import Exponents, Optimum

PF_DAY = 1e15 * 86_400.0
"""FLOPs of a petaFLOP/s over a day."""


@dataclass(frozen=True)
class InversePower:
    """(scale / x)^exponent."""

    scale: float
    exponent: float

    def __call__(self, x: float) -> float:
        return (self.scale / x) ** self.exponent


@dataclass(frozen=True)
class KaplanLaw:
    """L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D (equation 1.5) and the frontier N = N_e C_min^a.

    `size`, `data` and `compute` are the laws in one variable (equations 1.1 to 1.3, the last in PF-days): the other
    two being no bottleneck. `joint_size` and `joint_data` are N_c, α_N and D_c, α_D of equation 1.5, which were
    fitted together (Table 2) and differ from those alone. `frontier` is N_e and a (Table 6), per PF-day.

    Equation 1.5 is about D tokens read as often as helps, stopped early; the frontier is about one short pass.
    So `optimum` follows the frontier, which is not where equation 1.5 is least at 6·N·D = C: that would be
    N ∝ C^0.58, for the paper's reader to weigh.
    """

    size: InversePower
    data: InversePower
    compute: InversePower
    joint_size: InversePower
    joint_data: InversePower
    frontier_size: float
    frontier_exponent: float

    def loss(self, N: float, D: float) -> float:
        """Equation 1.5. N and D above 0."""
        for name, value in (("N", N), ("D", D)):
            if not value > 0:
                raise InputError(f"{name} is {value}: the law is defined for {name} above 0")
        ratio = self.joint_size.exponent / self.joint_data.exponent
        return float(((self.joint_size.scale / N) ** ratio + self.joint_data.scale / D) ** self.joint_data.exponent)

    @property
    def exponents(self) -> Exponents:
        """N ∝ C^a and D ∝ C^b along the frontier."""
        return Exponents(self.frontier_exponent, 1 - self.frontier_exponent)

    def optimum(self, C: float, flops_per_parameter_token: float = 6.0) -> Optimum:
        """N = N_e C^a, D = C / (k N), L = L(C_min), with C the FLOPs spent at a batch far below the critical one.

        At the critical batch a run costs C = 2 C_min and reads twice these tokens (equations 5.5 and 6.7): that is
        the paper's D_e = 2e10 tokens at a PF-day, where this gives 1.1e10.
        """
        for name, value in (("C", C), ("flops_per_parameter_token", flops_per_parameter_token)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}: give a finite number above 0")
        N = self.frontier_size * (C / PF_DAY) ** self.frontier_exponent
        return Optimum(N, C / (flops_per_parameter_token * N), self.compute(C / PF_DAY))

    def least_parameters(self, L: float) -> float:
        """N at which equation 1.5 gives L for endless data."""
        if not L > 0:
            raise InputError(f"loss is {L}: this law has no floor, but stays above 0")
        return float(self.joint_size.scale * L ** (-1 / self.joint_size.exponent))

    def tokens_for(self, N: float, L: float) -> float:
        """D of equation 1.5 at the loss L; `InputError` where N parameters stay above L with endless data."""
        floor = self.loss(N, math.inf)
        if not floor < L:
            raise InputError(
                f"loss is {L:.6g}: {N:.4g} parameters stay above {floor:.6g} after any number of tokens; "
                "ask for a higher loss or more parameters"
            )
        power = 1 / self.joint_data.exponent
        return float(self.joint_data.scale / (L**power - floor**power))
