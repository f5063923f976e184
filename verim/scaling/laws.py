"""Laws of loss in parameters and tokens, and what the literature found.

L(N, D) = E + A / N^α + B / D^β  (Hoffmann et al. 2203.15556, equations 2 and 10), N parameters, D tokens. The
unit of L is that of the runs it was fitted to: nats a token in the published laws, bits a byte in our own.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Float

from verim.errors import InputError

FloatArray = Float[np.ndarray, "..."]
Counted = Literal["total", "non_embedding"]


class Optimum(NamedTuple):
    """Where a law puts a budget: parameters, tokens, and the loss there."""

    N: float
    D: float
    L: float


class Exponents(NamedTuple):
    """N ∝ C^a and D ∝ C^b along the compute-optimal frontier; a + b = 1."""

    a: float
    b: float


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^α + B / D^β.

    >>> law = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
    >>> round(float(law.loss(1e9, 20e9)), 3)
    2.53
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name in ("E", "A", "B"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}: a law needs a finite {name} of at least 0")
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}: a law needs a finite exponent {name} above 0")

    @overload
    def loss(self, N: float, D: float) -> float: ...

    @overload
    def loss(self, N: FloatArray, D: FloatArray) -> FloatArray: ...

    def loss(self, N: float | FloatArray, D: float | FloatArray) -> float | FloatArray:
        """The loss after training N parameters on D tokens; arrays broadcast. N and D must be above 0."""
        for name, value in (("N", N), ("D", D)):
            if not bool(np.all(np.asarray(value) > 0)):
                raise InputError(f"{name} is {value}: the law is defined for {name} above 0")
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

    @property
    def exponents(self) -> Exponents:
        """a = β / (α + β) and b = α / (α + β) (Hoffmann et al., equation 4)."""
        total = self.alpha + self.beta
        return Exponents(self.beta / total, self.alpha / total)

    def optimum(self, C: float, flops_per_parameter_token: float = 6.0) -> Optimum:
        """The N and D of least loss among those with `flops_per_parameter_token` · N · D = C, in closed form.

        N = G (C/k)^a and D = (C/k)^b / G with G = (αA / βB)^(1/(α+β)) and k FLOPs a parameter and token
        (Hoffmann et al., equation 4, where k = 6). A law fitted to non-embedding parameters needs the k of
        those: small models spend more than 6, on attention and on the embedding's side of the head.
        Raises `InputError` where A or B is 0: then a larger N or D brings nothing and there is no optimum.
        """
        for name, value in (("C", C), ("flops_per_parameter_token", flops_per_parameter_token)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}: give a finite number above 0")
        if self.A == 0 or self.B == 0:
            missing, axis = ("A", "parameters") if self.A == 0 else ("B", "tokens")
            raise InputError(
                f"this law has {missing} = 0, so more {axis} bring nothing and no budget has an optimum: "
                f"fit it to runs that differ more in {axis}"
            )
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        product = C / flops_per_parameter_token
        N = balance * product**self.exponents.a
        D = product**self.exponents.b / balance
        return Optimum(N, D, self.loss(N, D))


@dataclass(frozen=True)
class PublishedLaw:
    """A law from the literature. `intervals` are 95 % where the source gives them."""

    name: str
    source: str
    law: Law
    counts: Counted
    rounded: bool
    intervals: tuple[tuple[str, float, float], ...] = ()
    unit: str = "nats per token"


@dataclass(frozen=True)
class PublishedExponents:
    """What a paper found for N ∝ C^a and D ∝ C^b. Intervals: 10th and 90th percentile, where given."""

    name: str
    source: str
    a: float
    b: float
    counts: Counted
    a_interval: tuple[float, float] | None = None
    b_interval: tuple[float, float] | None = None


HOFFMANN = PublishedLaw(
    name="Hoffmann et al., Approach 3",
    source="arXiv 2203.15556, unrounded values of its TeX source as given in Epoch's notebook",
    law=Law(
        E=math.exp(0.5267228),
        A=math.exp(6.0073404),
        B=math.exp(6.0179186),
        alpha=0.33917084,
        beta=0.2849083,
    ),
    counts="total",
    rounded=False,
)
# Kept because everybody quotes it. Its exponents move the optimum of 5.76e23 FLOPs from 40 B parameters to
# 32 B, so it is for comparison, never for planning.
HOFFMANN_ROUNDED = PublishedLaw(
    name="Hoffmann et al., Approach 3, as printed",
    source="arXiv 2203.15556, equation 10",
    law=Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    counts="total",
    rounded=True,
)
EPOCH = PublishedLaw(
    name="Besiroglu et al. (Epoch), refit of Hoffmann's Approach 3",
    source="arXiv 2404.10102; 95 % intervals from 4000 bootstraps",
    law=Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
    counts="total",
    rounded=False,
    intervals=(
        ("E", 1.769, 1.871),
        ("A", 285.0, 744.0),
        ("B", 1042.0, 5810.0),
        ("alpha", 0.317, 0.373),
        ("beta", 0.331, 0.415),
    ),
)
PUBLISHED_LAWS = (HOFFMANN, HOFFMANN_ROUNDED, EPOCH)

_HOFFMANN_TABLE_2 = "arXiv 2203.15556, Table 2"
PUBLISHED_EXPONENTS = (
    PublishedExponents("Kaplan et al.", "arXiv 2001.08361", 0.73, 0.27, "non_embedding"),
    PublishedExponents(
        "Hoffmann et al., Approach 1 (envelope)",
        _HOFFMANN_TABLE_2,
        0.50,
        0.50,
        "total",
        (0.488, 0.502),
        (0.501, 0.512),
    ),
    PublishedExponents(
        "Hoffmann et al., Approach 2 (IsoFLOP parabolas)",
        _HOFFMANN_TABLE_2,
        0.49,
        0.51,
        "total",
        (0.462, 0.534),
        (0.483, 0.529),
    ),
    PublishedExponents(
        "Hoffmann et al., Approach 3 (parametric loss)",
        _HOFFMANN_TABLE_2,
        0.46,
        0.54,
        "total",
        (0.454, 0.455),
        (0.542, 0.543),
    ),
    PublishedExponents("Besiroglu et al. (Epoch)", "arXiv 2404.10102", 0.513, 0.487, "total"),
)
