"""From a data set and a budget to a training run: what is asked for is taken, the rest is chosen by rule."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from verim.data import Dataset, Loader
from verim.errors import InputError
from verim.models import LanguageModelConfig, architecture_config
from verim.runtime.files import read_json
from verim.scaling.budget import Budget, Choice, choose
from verim.scaling.ladder import expected_seconds
from verim.scaling.speed import WIDTHS, Candidate, measure, measure_model
from verim.train.config import TrainerConfig
from verim.train.pretraining import Pretraining, check_documents
from verim.train.rules import LENGTH, MOST_EPOCHS, Recipe, recipe

_SPEED_SECONDS = 4.0
_SPEED_SHARE = 0.05
"""Of a budget of time, what measuring the sizes may take."""


@dataclass(frozen=True)
class Request:
    """What is asked of a run; None is left to the rules.

    - `model`: a file with the configuration of a model (`LanguageModelConfig.to_json`), instead of `architecture` and
      `width`.
    - `settle(rules)`: the trainer's configuration, given what the rules say for the run's tokens.
    """

    data: Path
    budget: Budget
    architecture: str = "transformer"
    width: int | None = None
    model: Path | None = None
    batch: int | None = None
    length: int = LENGTH
    seed: int = 0
    evaluations: int = 10
    within_documents: bool = False
    settle: Callable[[Recipe], TrainerConfig] = lambda rules: rules.trainer

    def __post_init__(self) -> None:
        for name in ("width", "batch", "length", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: got {value}, expected at least 1")
        if self.model is not None and self.width is not None:
            raise InputError("width: got it beside model, which says the width; give one of them")


@dataclass(frozen=True)
class PlannedRun:
    """The run, the size that was chosen and what it costs; `warnings` for the user."""

    pretraining: Pretraining
    choice: Choice
    warnings: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return self.pretraining.trainer.steps * self.pretraining.batch * self.pretraining.length

    @property
    def flops(self) -> float:
        return self.tokens * self.choice.candidate.flops_per_token


def plan_run(request: Request) -> PlannedRun:
    """Chooses what `request` leaves open. Raises `InputError` where that is impossible."""
    data = Dataset(request.data, verify=False)
    Loader(data.train, 1, request.length, request.seed)  # before anything is measured: the text may be too short
    if request.within_documents and request.model is None:
        check_documents(architecture_config(request.architecture, WIDTHS[0], data.vocab))
    candidates, config = _candidates(request, data.vocab)
    choice = choose(candidates, request.budget, request.evaluations)
    if config is None:
        config = architecture_config(request.architecture, choice.candidate.width, data.vocab)
    if config.context == 0:
        config = replace(config, context=request.length)
    rules = recipe(choice.tokens, request.evaluations, request.length, request.batch)
    pretraining = Pretraining(
        data=str(request.data),
        corpus_sha256=data.manifest.corpus_sha256,
        tokenizer=data.manifest.tokenizer,
        separator=data.separator,
        model=config,
        batch=rules.batch,
        length=request.length,
        seed=request.seed,
        trainer=request.settle(rules),
        within_documents=request.within_documents,
    )
    planned = PlannedRun(pretraining, choice, ())
    epochs = planned.tokens / len(data.train)
    warnings = []
    if epochs > MOST_EPOCHS:
        warnings.append(
            f"the training text is read {epochs:,.0f} times; more than {MOST_EPOCHS} times brings nothing: give more "
            "text or less time"
        )
    return replace(planned, warnings=tuple(warnings))


def _candidates(request: Request, vocab: int) -> tuple[list[Candidate], LanguageModelConfig | None]:
    """The sizes to choose from, measured; and the configuration where it is given."""
    if request.model is not None:
        content = read_json(request.model)
        config = LanguageModelConfig.from_json(content if isinstance(content, dict) else {})
        if config.vocab < vocab:
            raise InputError(f"model: {request.model} has a vocab of {config.vocab}, the data set needs {vocab}")
        return [measure_model(config, request.length, request.model.stem)], config
    if request.width is not None:
        config = architecture_config(request.architecture, request.width, vocab)
        return [measure_model(config, request.length, request.architecture)], config
    seconds = _SPEED_SECONDS
    if request.budget.seconds is not None:
        seconds = min(seconds, _SPEED_SHARE * request.budget.seconds)
    return measure(request.architecture, WIDTHS, seconds, vocab, request.length), None


def expected_run_seconds(planned: PlannedRun) -> float:
    """Seconds of the run, evaluations included."""
    return expected_seconds(planned.choice.candidate, planned.tokens, planned.pretraining.trainer.evaluations)
