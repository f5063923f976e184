"""Linear models: what is selected can be copied, by a recurrence that depends on its input."""

from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, AtMost
from verim.recipes.mixers import Experiment, Trial, train

_SOURCE = "Gu and Dao 2023, arXiv 2312.00752, section 4.1.1 and table 1"


def _copied(mixer: str, learning_rate: float, steps: int) -> Measurement:
    """The share of right answers after training, as the recipe of the mixers trains."""
    experiment = Experiment(steps=steps, cooldown=min(300, steps))
    task = experiment.task("selective_copying")
    found = train(Trial("selective_copying", mixer, 16, learning_rate, seed=0), experiment)
    longer = ", ".join(f"{100 * share:.0f} %" for share in found["longer"])
    return Measurement(
        found["accuracy"],
        f"right answers on held-out sequences of {task.length} after {found['steps']} steps, 2 blocks of width 16; at "
        f"2 and 4 times the length {longer}",
    )


@claim(
    id="linear-selective-copies",
    area="linear",
    text="Mamba, whose scan is selective, solves selective copying",
    source=_SOURCE,
    expected=AtLeast(0.97),
    cost=65,
    kind="measured",
    remark="the source has sequences of 4096 with 16 to copy, here 48 with 4",
)
def selective_copies(steps: int = 2000) -> Measurement:
    return _copied("mamba", 0.003, steps)


@claim(
    id="linear-time-invariant-fails",
    area="linear",
    text="A time-invariant state-space model does not solve selective copying",
    source=_SOURCE,
    expected=AtMost(0.9),
    cost=200,
    kind="measured",
    remark="the source has 18 % without a gate and 56 % in Mamba's block, of sequences of 4096; short ones are easier",
)
def time_invariant_fails(steps: int = 2000) -> Measurement:
    return _copied("s4d", 0.01, steps)
