"""Training a language model on a data set: all that it depends on as one value, and the run that it describes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import verim
from verim.anatomy.calibration import calibrate
from verim.anatomy.machine import machine_card
from verim.data import Dataset
from verim.errors import InputError
from verim.models import LanguageModel, LanguageModelConfig
from verim.nn import within_documents
from verim.runs import RunDirectory
from verim.runs.trackers import trackers
from verim.runtime.configurations import filled
from verim.train.config import TrainerConfig
from verim.train.meter import Meter
from verim.train.parallel import ParallelConfig, parallelize
from verim.train.parallel.config import DIMENSIONS
from verim.train.rules import EVALUATION_BYTES, LENGTH
from verim.train.task import EVALUATION_BATCH, LanguageModelling
from verim.train.trainer import Progress, Trainer


@dataclass(frozen=True)
class Pretraining:
    """A language model, the data set it learns from, and how.

    - `data`: the data set's directory; `corpus_sha256` and `tokenizer`: what it must hold; `separator`: the token after
      each document.
    - `batch` sequences of `length` tokens a step, drawn by `seed`, which also draws the weights.
    - `evaluation_tokens`: how many held-out tokens an evaluation reads.
    - `within_documents`: no token sees beyond its document; else rows are read as one text.
    """

    data: str
    corpus_sha256: str
    tokenizer: str
    separator: int
    model: LanguageModelConfig
    batch: int
    length: int
    seed: int
    trainer: TrainerConfig
    evaluation_tokens: int = EVALUATION_BYTES
    within_documents: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("length", 1), ("seed", 0), ("evaluation_tokens", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.batch % self.trainer.accumulation:
            raise InputError(
                f"accumulation: got {self.trainer.accumulation} parts for a batch of {self.batch} sequences, expected "
                f"a divisor of {self.batch}"
            )

    def to_json(self) -> dict[str, Any]:
        """The configuration of the run: `from_json` reads it back."""
        return asdict(self) | {"model": self.model.to_json(), "trainer": self.trainer.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Pretraining":
        """Raises `InputError` for what is missing or unknown, naming its place."""
        for part in ("model", "trainer"):
            if not isinstance(value.get(part), dict):
                raise InputError(f"config.json: no {part} in it: it is not a run of `verim train`")
        parts = {
            "model": LanguageModelConfig.from_json(value["model"]),
            "trainer": TrainerConfig.from_json(value["trainer"]),
        }
        return filled(cls, value | parts, "config.json")


def pretrain(
    pretraining: Pretraining,
    run: RunDirectory,
    device: torch.device,
    progress: Progress = lambda record: None,
    followed_by: Sequence[str] = (),
    warn: Callable[[str], None] = lambda warning: None,
    parallel: ParallelConfig | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Trains what is left of `run` and returns its result and what the user should be warned of.

    The figures go to `progress`, and to the trackers named in `followed_by`; `warn` is told of one that fails. On
    several ranks, all of which call this alike, `parallel` says what they share; the run may have begun on another
    number of them. Raises `InputError` where the data set is not the one that the run began with.
    """
    if run.finished:
        return run.result(), []
    data = Dataset(pretraining.data)
    for name in ("corpus_sha256", "tokenizer", "separator"):
        held = getattr(data.manifest, name)
        if held != getattr(pretraining, name):
            raise InputError(
                f"data: {pretraining.data} holds a data set with {name} {held}, the run began with "
                f"{getattr(pretraining, name)}: name that data set"
            )
    if pretraining.within_documents:
        check_documents(pretraining.model, parallel)
    torch.manual_seed(pretraining.seed)
    model = LanguageModel(pretraining.model).to(device)
    task = language_modelling(pretraining, data)
    flops = model.flops(pretraining.length)
    divided = parallelize(model, parallel, pretraining.batch, pretraining.length) if parallel is not None else None
    peak = peak_flops(device, pretraining.trainer)
    meter = Meter(
        pretraining.trainer.steps,
        task.tokens_per_step,
        flops,
        peak * run.ranks.count if peak is not None else None,
        device,
    )
    trained = model if divided is None else divided.module
    trainer = Trainer(trained, task, pretraining.trainer, run, meter, divided)
    first_rank = run.ranks.rank == 0
    with run.writing(), trackers(followed_by if first_rank else (), run.path, warn) as followers:
        first = True

        def tell(record: dict[str, float]) -> None:
            nonlocal first
            if first:
                followers.start(pretraining.to_json(), int(record["step"]) - 1)
                first = False
            followers.log(int(record["step"]), record)
            progress(record)

        result = trainer.train(pretraining.to_json(), tell, environment(device, parallel))
        followers.finish(result)
    return result, trainer.warnings


def language_modelling(pretraining: Pretraining, data: Dataset) -> LanguageModelling:
    """The task of learning the data set's training part, evaluated on its held-out part."""
    rows = max(1, EVALUATION_BATCH * LENGTH // pretraining.length)
    return LanguageModelling(
        data.train,
        data.evaluation(rows, pretraining.length, pretraining.evaluation_tokens),
        pretraining.batch,
        pretraining.length,
        pretraining.seed,
        data.manifest.bytes_per_token,
        pretraining.separator if pretraining.within_documents else None,
    )


def check_documents(config: LanguageModelConfig, parallel: ParallelConfig | None = None) -> None:
    """Raises `InputError` for a model, or ranks, that cannot keep tokens inside their documents."""
    asked = parallel or ParallelConfig()
    divided = [name for name in DIMENSIONS if name not in ("data", "shard") and getattr(asked, name) > 1]
    if divided:
        raise InputError(f"within-documents: got it with parallel.{divided[0]}, expected data or shard alone")
    model, tokens = LanguageModel(config), torch.zeros(1, 2, dtype=torch.long)
    with torch.no_grad(), within_documents(model, tokens):
        model(tokens)


def peak_flops(device: torch.device, trainer: TrainerConfig) -> float | None:
    """The measured FLOP/s of a large product with this process's threads; None where it was not measured (a GPU)."""
    if device.type != "cpu":
        return None
    ceilings = calibrate()
    kind = "float32" if trainer.precision.kind == "float32" else "bfloat16"  # float16 has no units of its own
    threads = "one_thread" if torch.get_num_threads() == 1 else "all_threads"
    peak: float = getattr(ceilings, f"matmul_{kind}_{threads}")
    return peak


def environment(device: torch.device, parallel: ParallelConfig | None = None) -> dict[str, Any]:
    """What a run needs said to be reproduced, beside its configuration."""
    here = {"verim": verim.__version__, "threads": torch.get_num_threads(), "device": str(device)}
    ranks = {"parallel": asdict(parallel)} if parallel is not None else {}
    return here | ranks | machine_card()
