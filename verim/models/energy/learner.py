"""Training of an energy by contrastive divergence, with scikit-learn's habits: `fit`, `predict`, `score`, `sample`."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from verim.errors import InputError
from verim.models.energy.boltzmann import RestrictedBoltzmannMachine
from verim.models.energy.neural import NeuralEnergy
from verim.models.energy.objectives import contrastive_divergence

EnergyModel = RestrictedBoltzmannMachine | NeuralEnergy


class Watcher(Protocol):
    """Sees the model between epochs, from epoch 0 before any training, with the chains as they are."""

    def __call__(self, epoch: int, chains: Tensor) -> None: ...


@dataclass(frozen=True)
class LearnerConfig:
    """How an energy is fitted.

    - `epochs`, `batch`, `rate`: of Adam, whose rate falls to 0 along a straight line.
    - `steps`: of the sampler an update: the k of CD-k.
    - `persistent`: chains go on from update to update (Tieleman 2008); else each begins at the batch (Hinton 2002).
    - `chains`: how many persistent ones there are; a batch of them moves in an update.
    - `restart`: the share of chains that begin anew at each update, which finds valleys far from the data.
    - `label_weight`: of −ln p(y | x), beside contrastive divergence (Larochelle & Bengio 2008's hybrid); 0: none.
    - `penalty`: on squared energies, see `contrastive_divergence`.
    - `blur`: deviation of normal noise on the data: a density on points has no slope to walk on.
    """

    epochs: int = 100
    batch: int = 100
    rate: float = 1e-3
    steps: int = 1
    persistent: bool = True
    chains: int = 1000
    restart: float = 0.0
    label_weight: float = 0.0
    penalty: float = 0.0
    blur: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch", 1), ("steps", 1), ("chains", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        for name in ("label_weight", "penalty", "blur"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if not self.rate > 0 or not 0 <= self.restart < 1:
            raise InputError(f"rate, restart: got {self.rate} and {self.restart}, expected more than 0, and 0 to 1")


DEFAULT_LEARNER = LearnerConfig()


class EnergyLearner:
    """Fits `model` to rows, and answers with the lowest energy."""

    def __init__(self, model: EnergyModel, config: LearnerConfig = DEFAULT_LEARNER) -> None:
        self.model, self.config = model, config

    def fit(
        self,
        x: Float[Tensor, "rows pixels"],
        y: Int[Tensor, "rows"] | None = None,
        watch: Watcher | None = None,
    ) -> "EnergyLearner":
        """Returns itself. Raises `InputError` for rows that do not fit the model, and where training diverges."""
        config, model = self.config, self.model
        self._check(x, y)
        generator = torch.Generator(x.device).manual_seed(config.seed)
        optimiser = torch.optim.Adam(model.parameters(), config.rate)
        batch = min(config.batch, len(x))
        total = max(config.epochs * (len(x) // batch), 1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total)
        chains = model.begin(max(config.chains, batch), generator)
        if watch is not None:
            watch(0, chains)
        for epoch in range(config.epochs):
            order = torch.randperm(len(x), generator=generator, device=x.device)
            for rows in order[: len(x) // batch * batch].split(batch):
                data = self._blurred(x[rows], generator)
                joined = data if y is None else model.joined(data, y[rows])
                negatives = self._negatives(joined, chains, generator)
                loss = contrastive_divergence(model, joined, negatives, config.penalty)
                if config.label_weight and y is not None:
                    loss = loss + config.label_weight * cross_entropy(-model.label_energies(data), y[rows].long())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            if not bool(loss.isfinite()):
                raise InputError(f"rate: training diverged in epoch {epoch}; take less than {config.rate}")
            if watch is not None:
                watch(epoch + 1, chains)
        self.chains = chains
        return self

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "rows pixels"]) -> Int[Tensor, "rows"]:
        """The label of lowest energy."""
        return self.model.label_energies(x).argmin(1)

    def score(self, x: Float[Tensor, "rows pixels"], y: Int[Tensor, "rows"]) -> float:
        """The share of right labels."""
        return float((self.predict(x) == y).double().mean())

    def sample(self, steps: int = 100, generator: torch.Generator | None = None) -> Float[Tensor, "chains visible"]:
        """The chains of the training, `steps` further."""
        return self.model.walk(self.chains, steps, generator)

    def _negatives(self, joined: Tensor, chains: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the model: `steps` from the data, or from some of the `chains`, which are moved on in place."""
        config, model = self.config, self.model
        if not config.persistent:
            return model.walk(joined, config.steps, generator)
        chosen = torch.randperm(len(chains), generator=generator, device=chains.device)[: len(joined)]
        moved = chains[chosen]
        anew = int(config.restart * len(moved))
        if anew:
            moved[:anew] = model.begin(anew, generator)
        chains[chosen] = model.walk(moved, config.steps, generator)
        return chains[chosen]

    def _blurred(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not self.config.blur:
            return x
        return x + self.config.blur * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        width = self.model.pixels if y is not None else self.model.visible
        if x.dim() != 2 or x.shape[1] != width or not len(x) or not x.is_floating_point():
            raise InputError(f"x: got {x.dtype} of shape {tuple(x.shape)}, expected floats [rows, {width}]")
        if not bool(x.isfinite().all()):
            raise InputError("x holds NaN or infinity, expected finite numbers")
        if y is not None and y.shape != x.shape[:1]:
            raise InputError(f"y: got shape {tuple(y.shape)} for {len(x)} rows, expected a label a row")
        if y is not None and not 0 <= int(y.min()) <= int(y.max()) < self.model.labels:
            worst = int(y.max()) if int(y.min()) >= 0 else int(y.min())
            raise InputError(f"labels: got {worst}, expected 0 to {self.model.labels - 1}")
