"""Information: energy-based models learn without their partition function."""

from functools import partial

import torch
from torch import Tensor

from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost
from verim.models import energy


def _bars(rows: int) -> Tensor:
    """4 × 4 pictures of full rows or full columns, each drawn with probability ½ (MacKay's bars and stripes)."""
    chosen = (torch.rand(rows, 4) < 0.5).float()
    across = chosen[:, :, None].expand(rows, 4, 4)
    turned = torch.rand(rows, 1, 1) < 0.5
    return torch.where(turned, across, across.transpose(1, 2)).flatten(1)


@claim(
    id="information-energy-shift",
    area="information",
    text="Score matching does not see ln Z: an energy with another constant has the same loss",
    source="Hyvärinen 2005, JMLR 6, theorem 1",
    expected=AtMost(1e-12),
    cost=0.1,
    kind="computed",
)
def energy_shift() -> Measurement:
    curvature = torch.rand(5, dtype=torch.float64)
    x = torch.randn(100, 5, dtype=torch.float64)

    def shifted(constant: float, rows: Tensor) -> Tensor:
        return (rows**4 * curvature).sum(1) + constant

    losses = [energy.score_matching(partial(shifted, constant), x) for constant in (0.0, 100.0)]
    return Measurement(
        float((losses[0] - losses[1]).detach().abs()), "difference at constants 0 and 100, 100 rows of 5"
    )


@claim(
    id="information-energy-learns",
    area="information",
    text="An energy-based model is trained without computing its partition function",
    source="LeCun et al. 2006, A tutorial on energy-based learning, section 1.3; Hinton 2002, section 3",
    expected=AtLeast(1.0),
    cost=2,
    kind="measured",
)
def energy_learns(epochs: int = 200) -> Measurement:
    machine = energy.RestrictedBoltzmannMachine(visible=16, hidden=12)
    x = _bars(500)

    def log_likelihood() -> float:
        with torch.no_grad():  # exact, by enumeration, only to judge: training does not call it
            return -float(machine(x).mean()) - energy.exact_log_partition(machine)

    before = log_likelihood()
    energy.EnergyLearner(machine, energy.LearnerConfig(epochs=epochs, rate=0.02, chains=200)).fit(x)
    return Measurement(
        log_likelihood() - before,
        f"gain of the exact ln p in nats a picture, {epochs} epochs of persistent contrastive divergence, 4 × 4 bars",
    )
