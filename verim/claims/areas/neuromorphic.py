"""Neuromorphic learning: what local rules converge to, and how fast."""

import torch
from torch import Tensor

from verim import neuro
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtMost, Exactly, Goldens

_OJA = "Oja 1982, Journal of Mathematical Biology 15, 267"
_BCM = "Bienenstock, Cooper and Munro 1982, Journal of Neuroscience 2, 32"
_VARIANCES = (4.0, 1.0, 0.25, 0.25)


def _samples(count: int) -> Tensor:
    """Normal samples of these variances along orthogonal directions."""
    directions = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    return torch.randn(count, 4, dtype=torch.float64) * torch.tensor(_VARIANCES).sqrt() @ directions


def _angles(found: Tensor, directions: Tensor) -> Tensor:
    """Degrees between rows, whichever way they point."""
    unit = found / found.norm(dim=1, keepdim=True)
    return (unit * directions).sum(1).abs().clamp_max(1).acos().rad2deg()


@claim(
    id="neuromorphic-hebb-rate",
    area="neuromorphic",
    text="Hebb's rule diverges, exponentially, at the rate of the largest eigenvalue",
    source=f"{_OJA}, equation 2; Dayan and Abbott, Theoretical Neuroscience, section 8.2",
    expected=Exactly(1.0, tolerance=0.02),
    cost=0.5,
    kind="measured",
)
def hebb_rate() -> Measurement:
    x = _samples(500)
    largest = float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])
    rule = neuro.Hebb(rate=2e-3, batch=len(x)).fit(x, epochs=1000).partial_fit(x)
    return Measurement(
        rule.growth_rate_ / largest,
        f"growth of ln ‖w‖ over the sum of rates, over λ = {largest:.3g}, after 1000 steps of all of 500 samples",
    )


@claim(
    id="neuromorphic-hebb-diverges",
    area="neuromorphic",
    text="With Hebb's rule the weights grow without bound",
    source="Dayan and Abbott, Theoretical Neuroscience, section 8.2",
    expected=Exactly(2.0, tolerance=0.1),
    cost=0.5,
    kind="measured",
)
def hebb_diverges() -> Measurement:
    x = _samples(1000)
    rule = neuro.Hebb(rate=1e-2, batch=100).fit(x, epochs=50)
    once = rule.log_norm_
    for _ in range(50):
        rule.partial_fit(x)
    grown = f"ln ‖w‖ after 500 steps is {once:.1f}"
    return Measurement(rule.log_norm_ / once, f"ln ‖w‖ after 1000 steps over that after 500; {grown}, rate 0.01")


@claim(
    id="neuromorphic-oja-norm",
    area="neuromorphic",
    text="With Oja's rule the norm of the weights goes to 1",
    source=_OJA,
    expected=Exactly(1.0, tolerance=0.02),
    cost=0.5,
    kind="measured",
)
def oja_norm() -> Measurement:
    x = _samples(1000)
    rule = neuro.Oja(rate=0.02, batch=20).fit(x, epochs=20)
    return Measurement(float(rule.components_.norm()), "‖w‖ after 1000 mini-batches of 20, rate 0.02")


@claim(
    id="neuromorphic-oja-angle",
    area="neuromorphic",
    text="With Oja's rule the weights turn to the first principal component",
    source=_OJA,
    expected=AtMost(5.0),
    cost=0.5,
    kind="measured",
)
def oja_angle() -> Measurement:
    x = _samples(1000)
    leading = torch.linalg.eigh(x.T.cov()).eigenvectors[:, -1]
    rule = neuro.Oja(rate=0.02, batch=20).fit(x, epochs=20)
    angle = _angles(rule.components_, leading[None])
    return Measurement(float(angle), "degrees from the eigenvector, after 1000 mini-batches of 20; variances 4 and 1")


@claim(
    id="neuromorphic-sanger-order",
    area="neuromorphic",
    text="Sanger's rule finds the principal components in their order",
    source="Sanger 1989, Neural Networks 2, 459",
    expected=AtMost(5.0),
    cost=0.5,
    kind="measured",
)
def sanger_order() -> Measurement:
    x = _samples(1000)
    leading = torch.linalg.eigh(x.T.cov()).eigenvectors.flip(1).T[:2]
    rule = neuro.Sanger(components=2, rate=0.02, batch=20).fit(x, epochs=20)
    angles = _angles(rule.components_, leading).tolist()
    return Measurement(dict(zip(("first", "second"), angles, strict=True)), "degrees from the eigenvectors of 4 and 1")


@claim(
    id="neuromorphic-bcm-threshold",
    area="neuromorphic",
    text="The threshold of BCM follows E[y²]",
    source=f"{_BCM}; Intrator and Cooper 1992, Neural Networks 5, 3",
    expected=Exactly(1.0, tolerance=0.1),
    cost=1,
    kind="measured",
)
def bcm_threshold() -> Measurement:
    x = torch.eye(4)[torch.randint(4, (4000,))]
    rule = neuro.BCM(neurons=3, rate=1e-2, batch=10, memory=1000).fit(x, epochs=10)
    power = rule.transform(x).square().mean(0)
    ratios = (rule.thresholds_ / power).tolist()
    named = {f"neuron {index + 1}": ratio for index, ratio in enumerate(ratios)}
    return Measurement(named, "θ over the mean y², three neurons after 4000 mini-batches of 10, four patterns")


@claim(
    id="neuromorphic-bcm-selective",
    area="neuromorphic",
    text="A BCM neuron comes to respond to one pattern of n alone, by the inverse of its probability",
    source=f"{_BCM}; Castellani et al. 1999, Biological Cybernetics 81",
    expected=Goldens({"selectivity": 0.75, "response": 4.0}, relative=0.05),
    cost=2,
    kind="measured",
)
def bcm_selective() -> Measurement:
    patterns = torch.eye(4)
    x = patterns[torch.randint(4, (4000,))]
    rule = neuro.BCM(rate=1e-2, batch=10, memory=400).fit(x, epochs=20)
    found = {"selectivity": float(rule.selectivity(patterns)), "response": float(rule.transform(patterns).max())}
    return Measurement(found, "four orthogonal patterns of probability 1/4; 1 − 1/n, and 1/p = θ")
