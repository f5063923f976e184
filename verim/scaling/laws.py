"""Laws of loss in parameters and tokens. What the literature found of them stands in `verim.scaling.published`.

L(N, D) = E + A / N^α + B / D^β  (Hoffmann et al. 2203.15556, equations 2 and 10), N parameters, D tokens. The
unit of L is that of the runs it was fitted to: nats a token in the published laws, bits a byte in our own.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, overload

import numpy as np
from jaxtyping import Float

from verim.errors import InputError

FloatArray = Float[np.ndarray, "..."]


class Optimum(NamedTuple):
    """Where a law puts a budget: parameters, tokens, and the loss there."""

    N: float
    D: float
    L: float


class Exponents(NamedTuple):
    """N ∝ C^a and D ∝ C^b along the compute-optimal frontier; a + b = 1."""

    a: float
    b: float


class Surface(Protocol):
    """What a plan asks of any law of loss over N parameters and D tokens; the unit of the loss is the law's."""

    def loss(self, N: float, D: float) -> float:
        """The loss of N parameters after D tokens."""
        ...

    def optimum(self, C: float, flops_per_parameter_token: float = 6.0) -> Optimum:
        """Where a budget of C training FLOPs is spent best."""
        ...

    def tokens_for(self, N: float, L: float) -> float:
        """The tokens after which N parameters reach the loss L."""
        ...

    def least_parameters(self, L: float) -> float:
        """The size below which no number of tokens reaches the loss L."""
        ...


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

    def least_parameters(self, L: float) -> float:
        """N at which L(N, ∞) = L: no smaller model reaches L, whatever it reads. Raises `InputError` for L ≤ E."""
        if not L > self.E:
            raise InputError(f"loss is {L:.6g}: this law reaches nothing at or below its floor E = {self.E:.6g}")
        return float((self.A / (L - self.E)) ** (1 / self.alpha))

    def tokens_for(self, N: float, L: float) -> float:
        """D = (B / (L − E − A/N^α))^(1/β), the tokens that bring N parameters to the loss L.

        Raises `InputError` where N parameters stay above L after any number of tokens.

        >>> law = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
        >>> round(law.tokens_for(1e9, law.loss(1e9, 20e9)) / 1e9, 6)
        20.0
        """
        floor = self.loss(N, math.inf)
        if not floor < L:
            raise InputError(
                f"loss is {L:.6g}: {N:.4g} parameters stay above {floor:.6g} after any number of tokens; "
                f"ask for a higher loss or more parameters"
            )
        return float((self.B / (L - floor)) ** (1 / self.beta))


@dataclass(frozen=True)
class Frontier:
    """Where a budget goes, N = N_0 (C/C_0)^a and D = D_0 (C/C_0)^b, with nothing said of the loss.

    What Approaches 1 and 2 of Hoffmann et al. give. a + b is 1 only as nearly as the source prints them, so that
    6·N·D = C holds as nearly as it does in the source.
    """

    C_0: float
    N_0: float
    D_0: float
    a: float
    b: float

    def allocation(self, C: float) -> tuple[float, float]:
        """N and D for a budget of C FLOPs."""
        if not (math.isfinite(C) and C > 0):
            raise InputError(f"C is {C}: give a finite number above 0")
        return self.N_0 * (C / self.C_0) ** self.a, self.D_0 * (C / self.C_0) ** self.b
