"""`verim study`: from a folder of text to a plan that has been checked by training it.

corpus → calibration → ladder → runs → law → plan → the planned run → study.json. Every stage leaves its result in
the study's directory before the next begins, so a study that was killed goes on where it stopped and, the ladder
being fixed before the first run, ends with the same numbers.

    config.json          what was asked
    corpus.safetensors   the tokens, training and held-out; corpus.json names them
    ladder.json          the machine, the measured sizes, budgets, runs
    runs/<id>/           a run directory each
    study.json           the result
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from verim.anatomy.calibration import calibrate
from verim.anatomy.machine import machine_card
from verim.data.corpus import load_corpus
from verim.data.tokens import load_tokens, save_tokens
from verim.errors import BusyError, InputError, VerimError
from verim.generate import Sampling, complete
from verim.models import ARCHITECTURES, LanguageModel, architecture_config
from verim.runs import RunDirectory, locked
from verim.runtime.files import read_json, write_json
from verim.scaling import analysis
from verim.scaling.ladder import Ladder, RunSpec, fit_ladder, makespan, next_size
from verim.scaling.plan import EVALUATIONS, Plan, best_plan, plan_for_time
from verim.scaling.speed import WIDTHS, Candidate, faster
from verim.scaling.workers import CORPUS_FILE, Job, LocalWorkers, Workers
from verim.train.rules import MOST_EPOCHS
from verim.train.trainer import model_weights

LEAST_CORPUS_BYTES = 200_000
TARGET_SHARE = 0.2
"""The part of the minutes that the proof takes where --target-minutes does not say."""
_RESERVE_SECONDS = 6.0
_EXTENSION_SHARE = 0.08
"""The part of the ladder's time kept back for sizes beyond its edge, where a minimum lies there."""
_MOST_EXTENSIONS = 2
_SPEED_SECONDS = 3.0
_SAMPLE_BYTES = 600


@dataclass(frozen=True)
class StudyConfig:
    """What is asked of a study. `minutes` is the whole of it, the proof's `target_minutes` included."""

    paths: tuple[str, ...] = ()
    minutes: float = 5.0
    target_minutes: float | None = None
    architectures: tuple[str, ...] = ("transformer", "mamba")
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.minutes < float("inf"):
            raise InputError(f"minutes: got {self.minutes:g}, expected at least 1: give --minutes 5, say")
        if self.target_minutes is not None and not 0 < self.target_minutes <= 0.8 * self.minutes:
            raise InputError(
                f"target-minutes: got {self.target_minutes:g} of {self.minutes:g} minutes, expected more than 0 and at "
                "most four fifths of them: the ladder needs the rest"
            )
        if not self.architectures:
            raise InputError(f"architectures: got none, expected some of {', '.join(ARCHITECTURES)}")
        for name in self.architectures:
            if name not in ARCHITECTURES:
                raise InputError(f"architectures: got {name!r}, expected some of {', '.join(ARCHITECTURES)}")
        if len(set(self.architectures)) < len(self.architectures):
            raise InputError(f"architectures: got {', '.join(self.architectures)}, expected each name once")
        if self.seed < 0:
            raise InputError(f"seed: got {self.seed}, expected 0 or more")

    @property
    def target_seconds(self) -> float:
        minutes = self.target_minutes if self.target_minutes is not None else TARGET_SHARE * self.minutes
        return 60 * minutes


Result = TypeVar("Result")


class Watcher(Protocol):
    """Who shows the study to the user: told of stages, of the ladder, and of how far each run is."""

    def stage(self, text: str) -> None: ...

    def ladder(self, ladder: Ladder, measured: dict[str, list[Candidate]], target_seconds: float) -> None: ...

    def extended(self, specs: Sequence[RunSpec]) -> None: ...

    def planned(self, spec: RunSpec, loss: float) -> None: ...

    def progress(self, run: str, fraction: float) -> None: ...

    def finished(self, spec: RunSpec, result: dict[str, Any]) -> None: ...


OpenWorkers = Callable[[Path], Workers]


def begin(config: StudyConfig, directory: Path) -> None:
    """Makes a study's directory. Raises `InputError` where it holds something already."""
    if directory.exists() and any(path.name != ".lock" for path in directory.iterdir()):
        raise InputError(f"out: {directory} is not empty; name another directory, or go on with --resume {directory}")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", asdict(config))


def stored_config(directory: Path) -> StudyConfig:
    """The configuration of the study in `directory`. Raises `InputError` where there is none."""
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"resume: {directory} holds no study (no config.json); name a study's directory")
    return _read_parts(
        path, lambda held: StudyConfig(**(held | {name: tuple(held[name]) for name in ("paths", "architectures")}))
    )


def on_this_machine(directory: Path) -> Workers:
    return LocalWorkers()


def run_study(
    directory: Path, watcher: Watcher, wait_seconds: float = 5.0, open_workers: OpenWorkers = on_this_machine
) -> dict[str, Any]:
    """Runs the study in `directory` from where it is to its end; returns what study.json then holds.

    `open_workers(directory)` gives who trains the runs (`verim.scaling.ray.RayWorkers`, say).
    Raises `BusyError` where another process is at it. A study that fails before its ladder is fixed has nothing worth
    keeping and leaves nothing behind.
    """
    try:
        return _run_locked(directory, watcher, wait_seconds, open_workers)
    except BusyError:
        raise
    except (VerimError, OSError):
        if not (directory / "ladder.json").exists():
            for name in ("config.json", "corpus.json", "seconds.json", CORPUS_FILE, ".lock"):
                (directory / name).unlink(missing_ok=True)
            if not any(directory.iterdir()):
                directory.rmdir()
        raise


def _run_locked(directory: Path, watcher: Watcher, wait_seconds: float, open_workers: OpenWorkers) -> dict[str, Any]:
    with locked(directory, wait_seconds):
        finished = directory / "study.json"
        if finished.exists():
            watcher.stage("the study is finished: its result is read")
            return dict(read_json(finished))
        return _Study(directory, stored_config(directory), watcher, open_workers).run()


class _Study:
    """One pass over the stages; what a stage left behind is read instead of done again."""

    def __init__(self, directory: Path, config: StudyConfig, watcher: Watcher, open_workers: OpenWorkers) -> None:
        self.directory, self.config, self.watcher, self.open_workers = directory, config, watcher, open_workers
        self.began = time.perf_counter()
        held = directory / "seconds.json"
        self.seconds: dict[str, float] = dict(read_json(held)) if held.exists() else {}
        for partial in directory.glob(".*.partial"):
            partial.unlink()

    def run(self) -> dict[str, Any]:
        with self._timed("corpus"):
            corpus = self._corpus()
        with self.open_workers(self.directory) as workers:
            with self._timed("calibration"):
                stored = self._stored_ladder(workers, int(corpus["train_bytes"]))
            ladder = Ladder.from_json(stored["ladder"])
            measured = _candidates(stored["candidates"])
            self.watcher.ladder(ladder, measured, self.config.target_seconds)
            with self._timed("ladder"):
                runs = self._train(workers, ladder.runs)
                runs += self._extend(workers, runs, ladder, measured, float(stored["extension_seconds"]))
            with self._timed("fit"):
                self.watcher.stage("fitting the laws")
                findings = analysis.analyse(runs, ladder.budgets, measured, self.config.architectures)
                plan = self._plan(findings, _candidates(stored["target_candidates"]), ladder)
            with self._timed("target"):
                target = self._prove(workers, plan)
        study = analysis.assemble(
            corpus=corpus,
            machine=stored["machine"],
            options=asdict(self.config) | {"target_minutes": self.config.target_seconds / 60},
            ladder=ladder,
            findings=findings,
            plan=plan,
            target=target,
            seconds={"total": sum(self.seconds.values()), "parts": self.seconds},
        )
        write_json(self.directory / "study.json", study)
        return study

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
        write_json(self.directory / "seconds.json", self.seconds)

    def _corpus(self) -> dict[str, Any]:
        """Reads the corpus once; its tokens stay with the study, so that a resume needs no source file."""
        facts_path, tokens_path = self.directory / "corpus.json", self.directory / CORPUS_FILE
        if facts_path.exists():
            return dict(read_json(facts_path))
        self.watcher.stage("reading the corpus")
        corpus = load_corpus(self.config.paths, least_bytes=LEAST_CORPUS_BYTES, exclude=(self.directory,))
        save_tokens(tokens_path, corpus.train, corpus.held_out)
        facts = {
            "name": corpus.name,
            "paths": list(self.config.paths),
            "documents": corpus.train_documents + corpus.held_out_documents,
            "skipped": sum(corpus.skipped.values()),
            "skipped_by_reason": corpus.skipped,
            "duplicates": corpus.duplicates,
            "bytes": corpus.bytes,
            "sha256": corpus.sha256,
            "train_bytes": len(corpus.train),
            "held_out_bytes": len(corpus.held_out),
            "held_out_documents": corpus.held_out_documents,
            "notes": list(corpus.notes),
        }
        write_json(facts_path, facts)
        return facts

    def _stored_ladder(self, workers: Workers, train_bytes: int) -> dict[str, Any]:
        """Measures the machine and the sizes and fixes the ladder, or reads what was fixed before."""
        path = self.directory / "ladder.json"
        if path.exists():
            return _read_parts(path, _whole_ladder)
        self.watcher.stage("measuring the machine")
        machine = _machine()
        self.watcher.stage("measuring the speed of every size, all cores busy")
        measured = self._measure(workers, workers.processes, 1)
        self.watcher.stage("measuring the speed of one run on all cores")
        together = self._measure(workers, 1, workers.threads)
        for name, sizes in together.items():
            alone = {size.width: size for size in measured[name]}
            together[name] = [faster(size, alone.get(size.width, size)) for size in sizes]
        spent = time.perf_counter() - self.began
        left = 60 * self.config.minutes - spent - self.config.target_seconds - _RESERVE_SECONDS
        target = self.config.target_seconds
        share = left * (1 - _EXTENSION_SHARE)
        ladder = fit_ladder(measured, share, workers.processes, self.config.seed, together, target)
        longest = max(run.tokens for run in ladder.runs)
        if longest > MOST_EPOCHS * train_bytes:
            raise InputError(
                f"paths: the ladder of {self.config.minutes:g} minutes needs {longest / MOST_EPOCHS:,.0f} bytes of "
                f"text and there are {train_bytes:,}: name more text, or give fewer --minutes"
            )
        stored = {
            "machine": machine,
            "candidates": {name: [c.to_json() for c in sizes] for name, sizes in measured.items()},
            "target_candidates": {name: [c.to_json() for c in sizes] for name, sizes in together.items()},
            "ladder": ladder.to_json(),
            "extension_seconds": left * _EXTENSION_SHARE,
        }
        write_json(path, stored)
        return stored

    def _measure(self, workers: Workers, side_by_side: int, threads: int) -> dict[str, list[Candidate]]:
        """The sizes of every architecture, `side_by_side` at a time; no process is idle meanwhile."""
        names = self.config.architectures
        found: dict[str, list[Candidate]] = {}
        for first in range(0, len(names), side_by_side):
            group = names[first : first + side_by_side]
            filled = [group[k % len(group)] for k in range(side_by_side)]
            futures = [workers.measure(name, WIDTHS, _SPEED_SECONDS, threads) for name in filled]
            for name, future in zip(filled, futures, strict=True):
                found.setdefault(name, workers.result(future))
        return found

    def _train(self, workers: Workers, specs: Sequence[RunSpec]) -> list[analysis.Trained]:
        """Trains what is not trained yet, the longest first, and returns all of it in the order given."""
        futures: dict[Future[dict[str, Any]], RunSpec] = {}
        for spec in sorted(specs, key=lambda spec: -spec.expected_seconds):
            job = Job(self.directory / "runs" / spec.id, spec, threads=1)
            futures[workers.train(job)] = spec
        results: dict[RunSpec, dict[str, Any]] = {}
        while futures:
            done, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
            self._show(workers)
            for future in done:
                spec = futures.pop(future)
                results[spec] = workers.result(future)
                self.watcher.finished(spec, results[spec])
        return [analysis.Trained(spec, results[spec]) for spec in specs]

    def _show(self, workers: Workers) -> None:
        for run, fraction in workers.news():
            self.watcher.progress(run, fraction)

    def _extend(
        self,
        workers: Workers,
        runs: list[analysis.Trained],
        ladder: Ladder,
        measured: dict[str, list[Candidate]],
        left: float,
    ) -> list[analysis.Trained]:
        """Adds sizes beyond the edge where a minimum lies there, as long as the `left` seconds kept back for it last.

        What is added follows from the losses and the ladder's measured times alone, never from the clock.
        """
        added: list[analysis.Trained] = []
        for _ in range(_MOST_EXTENSIONS):
            specs = []
            for name in measured:
                for budget in ladder.budgets:
                    rung = [(run.spec, run.loss) for run in runs + added if run.on(name, budget)]
                    spec = next_size(rung, measured[name], budget, self.config.seed)
                    if spec is not None:
                        specs.append(spec)
            specs.sort(key=lambda spec: spec.expected_seconds)
            while specs and makespan([spec.expected_seconds for spec in specs], ladder.workers) > left:
                specs.pop()
            if not specs:
                break
            left -= makespan([spec.expected_seconds for spec in specs], ladder.workers)
            self.watcher.extended(specs)
            added += self._train(workers, specs)
        return added

    def _plan(self, findings: analysis.Findings, candidates: dict[str, list[Candidate]], ladder: Ladder) -> Plan:
        path = self.directory / "plan.json"
        if path.exists():
            held = _read_parts(path, lambda stored: {name: Plan.from_json(plan) for name, plan in stored.items()})
            findings.predictions |= held
            return best_plan(held)
        plans = {
            name: plan_for_time(law, candidates[name], self.config.target_seconds, ladder.budgets[-1])
            for name, law in findings.laws.items()
        }
        write_json(path, {name: plan.to_json() for name, plan in plans.items()})
        findings.predictions |= plans
        return best_plan(plans)

    def _prove(self, workers: Workers, plan: Plan) -> dict[str, Any]:
        """Trains the recommended model on all cores and lets it write a little."""
        spec = RunSpec.of(plan.candidate, plan.flops, self.config.seed, EVALUATIONS)
        self.watcher.planned(spec, plan.predicted.loss)
        run = RunDirectory(self.directory / "runs" / f"target-{spec.id}")
        future = workers.train(Job(run.path, spec, plan.candidate.threads))
        while not future.done():
            wait([future], timeout=0.2)
            self._show(workers)
        result = workers.result(future)
        self.watcher.finished(spec, result)
        curve = [
            [line["step"] * result["tokens"] / result["steps"], line["bits_per_byte"]]
            for line in run.metrics()
            if "bits_per_byte" in line
        ]
        return result | {"curve": curve, "sample": self._sample(run, spec)}

    def _sample(self, run: RunDirectory, spec: RunSpec) -> dict[str, str]:
        """What the trained model writes after the beginning of a held-out document."""
        checkpoint = run.latest_checkpoint()
        assert checkpoint is not None, "a finished run has its last checkpoint"
        model = LanguageModel(architecture_config(spec.architecture, spec.width))
        model.load_state_dict(model_weights(checkpoint))
        held_out = load_tokens(self.directory / CORPUS_FILE)["held_out"]
        prompt = held_out[:64].tolist()
        torch.set_num_threads(1)
        sampling = Sampling(temperature=0.8, seed=self.config.seed, max_tokens=_SAMPLE_BYTES)
        return {"prompt": _text(prompt), "text": _text(complete(model, [prompt], sampling)[0].tokens)}


def _read_parts(path: Path, parse: Callable[[Any], Result]) -> Result:
    """What `parse` makes of the JSON in a study's file; a file that is not a study's is said to be."""
    try:
        return parse(read_json(path))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"resume: {path} is not what a study wrote there ({type(error).__name__}: {error}); name a study's "
            "directory, or begin the study again"
        ) from error


def _whole_ladder(stored: Any) -> dict[str, Any]:
    """The content of ladder.json, each part of it readable."""
    Ladder.from_json(stored["ladder"])
    for part in ("candidates", "target_candidates"):
        _candidates(stored[part])
    dict(stored["machine"])
    return dict(stored)


def _machine() -> dict[str, Any]:
    """The machine's card and its measured ceilings."""
    ceilings = calibrate()
    card = machine_card()
    return card | {
        "gpu": card["cuda"][0]["name"] if card["cuda"] else None,
        "copy_bytes_per_second": ceilings.copy_all_threads,
        "matmul_flops_per_second": {
            "float32": ceilings.matmul_float32_all_threads,
            "bfloat16": ceilings.matmul_bfloat16_all_threads,
        },
        "launch_seconds": ceilings.launch_seconds,
    }


def _text(tokens: list[int]) -> str:
    """Bytes as text; what is not UTF-8 or ends a document shows as a replacement character."""
    return bytes(tokens).replace(b"\0", "␀".encode()).decode("utf-8", errors="replace")


def _candidates(stored: dict[str, list[dict[str, Any]]]) -> dict[str, list[Candidate]]:
    return {name: [Candidate(**size) for size in sizes] for name, sizes in stored.items()}
