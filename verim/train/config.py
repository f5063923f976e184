"""How a model is trained, as one value that survives JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from verim.errors import InputError
from verim.runtime.configurations import built, filled, named
from verim.train.averaging import AveragingConfig
from verim.train.optimisers import OPTIMISERS, OptimiserConfig
from verim.train.precision import Precision
from verim.train.schedules import SCHEDULES, Schedule
from verim.train.spikes import SpikeConfig

FLOAT32 = Precision()


@dataclass(frozen=True)
class TrainerConfig:
    """`schedule.steps` updates by `optimiser`, whose rate the schedule scales.

    - `clip`: the gradient is scaled down to this norm where it is larger.
    - `accumulation`: a batch is computed in so many parts, one after the other, whose gradients add up to the whole's.
    - `precision`: in what is computed and kept. `averaging`: of the weights, which are then evaluated; None: none.
    - `spikes`: steps whose loss stands out are skipped, or gone back behind; None: only a loss that is not finite ends
      the run.
    - `evaluations`: how often held-out figures are taken, evenly spread, the last after the last step.
    - `patience`: training ends after so many evaluations in a row without a better objective; 0: it never ends early.
    - `checkpoint_seconds`: a checkpoint is written so often.
    - `compile`: `torch.compile` where it succeeds.
    """

    optimiser: OptimiserConfig
    schedule: Schedule
    clip: float = 1.0
    accumulation: int = 1
    precision: Precision = FLOAT32
    averaging: AveragingConfig | None = None
    spikes: SpikeConfig | None = None
    evaluations: int = 1
    patience: int = 0
    checkpoint_seconds: float = 10.0
    compile: bool = False

    def __post_init__(self) -> None:
        for name, least in (("accumulation", 1), ("evaluations", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not self.clip > 0:
            raise InputError(f"clip: got {self.clip}, expected a positive norm")

    @property
    def steps(self) -> int:
        return self.schedule.steps

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON; `from_json` reads it back."""
        kinds = {"optimiser": named(self.optimiser, OPTIMISERS), "schedule": named(self.schedule, SCHEDULES)}
        return asdict(self) | kinds

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TrainerConfig":
        """Raises `InputError` for a kind or a field that does not exist, or one that is missing."""
        parts: dict[str, Any] = {
            "optimiser": built(OPTIMISERS, value.get("optimiser"), "optimiser"),
            "schedule": built(SCHEDULES, value.get("schedule"), "schedule"),
        }
        optional = {"precision": Precision, "averaging": AveragingConfig, "spikes": SpikeConfig}
        for name, kind in optional.items():
            if value.get(name) is not None:
                parts[name] = filled(kind, value[name], name)
        return filled(cls, value | parts, "trainer")
