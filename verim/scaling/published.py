"""The laws of the literature, by name: their constants, what they count, and the budgets they were fitted to.

>>> law = published_law("chinchilla")
>>> N, D, L = law.optimum(5.76e23)
>>> f"{N / 1e9:.0f} B parameters ({law.counts}), {D / 1e12:.1f} T tokens"
'40 B parameters (total), 2.4 T tokens'

Constants rounded for print are kept beside those that are not, since everybody quotes them; `optimum` refuses them
unless they were asked for by their own name. Exponents of two digits move Hoffmann's optimum of 5.76e23 FLOPs from
40 B parameters to 32 B.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from verim.errors import InputError
from verim.scaling.kaplan import InversePower, KaplanLaw
from verim.scaling.laws import Law, Optimum

Counted = Literal["total", "non_embedding"]
Fit = tuple[str, float, float]


@dataclass(frozen=True)
class FittedRange:
    """The training budgets that a law was fitted to, in FLOPs, and where that is said."""

    low: float
    high: float
    source: str

    def decades_outside(self, C: float) -> float:
        """log10 of the factor by which C lies above (positive) or below (negative) the range; 0 within."""
        if not (math.isfinite(C) and C > 0):
            raise InputError(f"C is {C}: give a finite number of FLOPs above 0")
        return max(0.0, math.log10(C / self.high)) + min(0.0, math.log10(C / self.low))

    def warning(self, C: float, whose: str) -> str | None:
        """A sentence where C lies outside: by how many decades, on which side, of what range."""
        decades = self.decades_outside(C)
        if decades == 0:
            return None
        side = "above" if decades > 0 else "below"
        return (
            f"{C:.3g} FLOPs lie {abs(decades):.1f} decades {side} what {whose} was fitted to "
            f"({self.low:.2g} to {self.high:.2g} FLOPs: {self.source}): its figures there are extrapolation"
        )


@dataclass(frozen=True)
class PublishedLaw:
    """A law from the literature; a `Surface` itself. `intervals` are 95 % where the source gives them.

    `rounded`: the constants are as printed, to two or three digits. `asked_for`: they were chosen by their own name.
    """

    name: str
    source: str
    law: Law | KaplanLaw
    counts: Counted
    rounded: bool
    fitted: FittedRange
    intervals: tuple[Fit, ...] = ()
    unit: str = "nats per token"
    asked_for: bool = False

    def loss(self, N: float, D: float) -> float:
        """The loss of N parameters (as `counts` counts them) after D tokens, in `unit`."""
        return float(self.law.loss(N, D))

    def optimum(self, C: float, flops_per_parameter_token: float = 6.0) -> Optimum:
        """Where C FLOPs are spent best. Raises `InputError` for rounded constants that nobody asked for by name."""
        if self.rounded and not self.asked_for:
            raise InputError(
                f"the constants of {self.name} are rounded for print, and rounded exponents move the optimum (that of "
                "5.76e23 FLOPs from 40 B parameters to 32 B): take 'chinchilla' or 'epoch', or ask for the rounded "
                "ones by their own name"
            )
        return self.law.optimum(C, flops_per_parameter_token)

    def least_parameters(self, L: float) -> float:
        """The size below which no number of tokens reaches the loss L."""
        return self.law.least_parameters(L)

    def tokens_for(self, N: float, L: float) -> float:
        """The tokens after which N parameters reach the loss L."""
        return self.law.tokens_for(N, L)

    def warnings(self, C: float) -> tuple[str, ...]:
        """What to say beside a plan for C FLOPs: a budget outside the fitted range, constants that are rounded."""
        outside = self.fitted.warning(C, self.name)
        rounded = (
            f"the constants of {self.name} are known only as rounded for print: parameters and tokens of a plan far "
            "from the fitted budgets may be off by tens of percent"
        )
        return tuple(filter(None, (outside, rounded if self.rounded else None)))


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


_HOFFMANN_RANGE = FittedRange(6e18, 3e21, "arXiv 2203.15556, section 3.2: nine budgets from 6e18 to 3e21 FLOPs")

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
    fitted=_HOFFMANN_RANGE,
)
HOFFMANN_ROUNDED = PublishedLaw(
    name="Hoffmann et al., Approach 3, as printed",
    source="arXiv 2203.15556, equation 10",
    law=Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    counts="total",
    rounded=True,
    fitted=_HOFFMANN_RANGE,
)
# Printed to four digits of the exponents; the notebook's further digits move no optimum by 0.3 %.
EPOCH = PublishedLaw(
    name="Besiroglu et al. (Epoch), refit of Hoffmann's Approach 3",
    source="arXiv 2404.10102; 95 % intervals from 4000 bootstraps",
    law=Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
    counts="total",
    rounded=False,
    fitted=FittedRange(
        1.4e18, 1.3e22, "the 240 runs of its data, read off Hoffmann's figure 4 (epoch-research/analyzing-chinchilla)"
    ),
    intervals=(
        ("E", 1.769, 1.871),
        ("A", 285.0, 744.0),
        ("B", 1042.0, 5810.0),
        ("alpha", 0.317, 0.373),
        ("beta", 0.331, 0.415),
    ),
)
KAPLAN = PublishedLaw(
    name="Kaplan et al.",
    source="arXiv 2001.08361, equations 1.1 to 1.3 and 1.5, Tables 2 and 6; no more digits are published",
    law=KaplanLaw(
        size=InversePower(8.8e13, 0.076),
        data=InversePower(5.4e13, 0.095),
        compute=InversePower(3.1e8, 0.050),
        joint_size=InversePower(6.4e13, 0.076),
        joint_data=InversePower(1.8e13, 0.103),
        frontier_size=1.3e9,
        frontier_exponent=0.73,
    ),
    counts="non_embedding",
    rounded=True,
    # 1.5e9 parameters on 2.5e5 steps of 512 sequences of 1024 tokens, and the eight decades below
    fitted=FittedRange(
        1.2e13,
        1.2e21,
        "arXiv 2001.08361, section 2: up to 1.5 B parameters on 1.3e11 tokens; section 1.2: eight orders of magnitude",
    ),
)
PUBLISHED_LAWS = (HOFFMANN, HOFFMANN_ROUNDED, EPOCH, KAPLAN)

LAWS = {
    "chinchilla": HOFFMANN,
    "epoch": EPOCH,
    "kaplan": replace(KAPLAN, asked_for=True),
    "chinchilla-rounded": replace(HOFFMANN_ROUNDED, asked_for=True),
}
"""The laws that a plan can be made by, by the name that asks for them."""


def published_law(name: str) -> PublishedLaw:
    """The law of that name: chinchilla, epoch, kaplan, or chinchilla-rounded. Raises `InputError` for another."""
    if name not in LAWS:
        raise InputError(f"law: got {name!r}, expected one of {', '.join(LAWS)}, or the directory of a study")
    return LAWS[name]


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
