"""From a budget to a plan: the law says what to train, the devices how fast and how it is laid out over them."""

import math
from dataclasses import dataclass, field
from functools import cached_property

from verim.anatomy import Workload, predict_memory
from verim.anatomy.devices import device
from verim.errors import InputError
from verim.scaling.ladder import expected_seconds
from verim.scaling.lifecycle import LifeCycle, cheapest_for_loss
from verim.scaling.plan import EVALUATIONS, tokens_within
from verim.scaling.planning.answer import Allocation, Answer, Life
from verim.scaling.planning.cost import Cost, Job, Layout
from verim.scaling.planning.fleet import Fleet, precision_of
from verim.scaling.planning.layouts import Ranking, rank, unsharded
from verim.scaling.planning.request import COUNT, DEVICE, PlanRequest
from verim.scaling.planning.search import Dial, compute_optimal_flops
from verim.scaling.planning.sizes import Size
from verim.scaling.planning.source import PlanLaw, law_of
from verim.scaling.speed import WIDTHS, Candidate, measure, measure_width
from verim.train.parallel import ParallelConfig
from verim.train.rules import LENGTH, Recipe, recipe

DEVICE_LENGTH, DEVICE_VOCAB = 2048, 32_000
"""Of sequences and their tokens where a plan is not for this machine: what Chinchilla's were."""
BYTES = 256
_MEASURING_SECONDS, _MEASURING_SHARE = 4.0, 0.05
_GUESSED_UTILISATION = 0.4
"""To begin the search for a size with, no more."""
_TURNS = 6


def plan(request: PlanRequest) -> Answer:
    """The plan for `request`. Raises `InputError` for what cannot be planned, naming the option."""
    law = law_of(request.law, request.architecture)
    where = device(request.device or DEVICE)
    on_bytes = request.is_here or law.is_of_bytes
    dial = Dial(
        request.architecture,
        request.vocab or (BYTES if on_bytes else DEVICE_VOCAB),
        request.length or (LENGTH if on_bytes else DEVICE_LENGTH),
        law,
    )
    fleet = Fleet(where, request.count or (1 if request.is_here else COUNT), precision_of(where))
    if fleet.count > 1 and where.kind == "cpu":
        raise InputError(f"count: got {fleet.count} for {where.name}, a CPU; expected 1")
    planner: _Planner = _OnThisCPU(request, dial, fleet) if where.kind == "cpu" else _OnDevices(request, dial, fleet)
    return planner.answer()


@dataclass
class _Planner:
    request: PlanRequest
    dial: Dial
    fleet: Fleet

    def answer(self) -> Answer:
        at = self.allocation(1.0)
        job = Job(at.size, at.recipe.batch, self.fleet.precision)
        ranking, without = self.ranking(job), self.unsharded(job)
        life = self._life(at)
        return Answer(
            allocation=at,
            job=job,
            law=self.law,
            fleet=self.fleet,
            ranking=ranking,
            unsharded=without,
            quarter=self.allocation(0.25),
            quadruple=self.allocation(4.0),
            life=life,
            price=self.request.price,
            warnings=tuple(self._warnings(at, ranking, without)),
        )

    @property
    def law(self) -> PlanLaw:
        return self.dial.law

    def allocation(self, share: float) -> Allocation:
        """Where `share` of the budget goes."""
        request = self.request
        if request.parameters is not None:  # a quarter of its FLOPs is what a quarter of the budget is
            size = self.dial.at(self.dial.nearest(request.parameters))
            flops = compute_optimal_flops(self.law, size)
            return self.for_flops(flops * share) if share != 1 else self._allocated(size, flops / size.flops_per_token)
        if request.flops is not None:
            return self.for_flops(request.flops * share)
        assert request.seconds is not None, "a budget is one of four"
        return self.for_seconds(request.seconds * share)

    def for_flops(self, flops: float) -> Allocation:
        size = self.dial.for_flops(flops)
        return self._allocated(size, flops / size.flops_per_token)

    def for_seconds(self, seconds: float) -> Allocation:
        start = self.dial.optimum(self.guessed_flops(seconds))

        def tokens(size: Size) -> float:
            return self.tokens_in(size, seconds)

        place = start if self.law.follows_frontier else self.dial.least(tokens, start, 1)
        while place > 0 and tokens(self.dial.at(place)) == 0:
            place -= 1
        size = self.dial.at(place)
        if tokens(size) == 0:
            raise InputError(
                f"device: no size of {size.architecture} fits on {self.fleet.count} {self.fleet.device.name}"
            )
        return self._allocated(size, tokens(size))

    def _allocated(self, size: Size, tokens: float) -> Allocation:
        how = self.recipe(size, tokens)
        whole = how.trainer.steps * how.batch * how.length
        N = self.law.count(size)
        loss = self.law.loss(N, whole)
        if self.law.follows_frontier:
            loss = self.law.optimum(whole * size.flops_per_token).L
        return Allocation(size, how, N, loss, self.law.interval(N, whole), self.seconds_of(size, how))

    def recipe(self, size: Size, tokens: float) -> Recipe:
        """By the rules of a run of its tokens; the batch a multiple of what is not a power of 2 in the devices."""
        rules = recipe(tokens, EVALUATIONS, size.length)
        odd = self.fleet.count
        while odd % 2 == 0:
            odd //= 2
        if odd == 1:
            return rules
        batch = odd * max(1, 2 ** round(math.log2(rules.batch / odd)))
        return recipe(tokens, EVALUATIONS, size.length, batch)

    def guessed_flops(self, seconds: float) -> float:
        return seconds * self.fleet.count * self.fleet.flops * _GUESSED_UTILISATION

    def tokens_in(self, size: Size, seconds: float) -> float:
        """On how many tokens a size is trained in so many seconds; 0 where it does not fit."""
        raise NotImplementedError

    def seconds_of(self, size: Size, how: Recipe) -> float | None:
        """Of a whole run; None where it does not fit."""
        raise NotImplementedError

    def ranking(self, job: Job) -> Ranking:
        raise NotImplementedError

    def unsharded(self, job: Job) -> Cost | None:
        """The layout of copies alone."""
        raise NotImplementedError

    def _life(self, at: Allocation) -> Life | None:
        """The plan beside what is cheapest at its loss. The surface's loss: a frontier's is another law's."""
        used = self.request.inference_tokens
        if used is None:
            return None
        training, inference = 6.0, 2.0
        loss = self.law.loss(at.N, at.tokens)
        planned = LifeCycle(at.N, at.tokens, loss, training * at.N * at.tokens, inference * at.N * used)
        return Life(used, planned, cheapest_for_loss(self.law.surface, loss, used))

    def _warnings(self, at: Allocation, ranking: Ranking, without: Cost | None) -> list[str]:
        said = self.law.warnings(at.flops)
        size, available = at.size, ranking.available
        if without is not None and without.memory_bytes > available:
            said.append(
                f"without sharding the model, {size.total:.3g} parameters do not fit: a device would hold "
                f"{without.memory_bytes / 1e9:,.1f} GB of {available / 1e9:,.1f} GB"
            )
        if ranking.best is None:
            nearest = ranking.too_large[0]
            said.append(
                f"no layout over {self.fleet.count} devices fits: the nearest takes {nearest.memory_bytes / 1e9:,.1f} "
                f"GB of {available / 1e9:,.1f} GB a device; give more --count, a smaller model, or another --device"
            )
        elif ranking.best.layout.parallel.offload:
            said.append("weights and states fit only with the CPU (offload): every step waits for it")
        if self.request.is_here and not self.law.is_of_bytes:
            said.append(
                f"{self.law.name} is about {self.law.unit} of its authors' text, not of yours: a study of your text "
                "(verim study) gives a law that is, for --law"
            )
        if self.request.parameters is not None and abs(math.log(at.N / self.request.parameters)) > 0.02:
            said.append(
                f"params: asked for {self.request.parameters:.3g}, the nearest size of {size.architecture} has "
                f"{at.N:.3g} ({self.law.counts})"
            )
        return said


@dataclass
class _OnDevices(_Planner):
    """By the cost model of layouts."""

    _rankings: dict[tuple[Size, int], Ranking] = field(default_factory=dict)

    def ranking(self, job: Job) -> Ranking:
        key = job.size, job.batch
        if key not in self._rankings:
            self._rankings[key] = rank(job, self.fleet)
        return self._rankings[key]

    def unsharded(self, job: Job) -> Cost | None:
        return unsharded(job, self.fleet)

    def tokens_in(self, size: Size, seconds: float) -> float:
        """The batch follows from the tokens, and the pace from the batch: a few turns, from the fewest tokens up."""
        tokens = self.guessed_flops(seconds) / size.flops_per_token
        for _ in range(_TURNS):
            how = self.recipe(size, tokens)
            best = self._ranking_of(size, how).best
            if best is None:
                return 0.0
            reached = seconds / best.step_seconds * how.batch * how.length
            if self.recipe(size, reached).batch == how.batch:
                return reached
            tokens = reached
        return reached

    def seconds_of(self, size: Size, how: Recipe) -> float | None:
        best = self._ranking_of(size, how).best
        return None if best is None else best.step_seconds * how.trainer.steps

    def _ranking_of(self, size: Size, how: Recipe) -> Ranking:
        return self.ranking(Job(size, how.batch, self.fleet.precision))


@dataclass
class _OnThisCPU(_Planner):
    """By measured steps; the memory by an imagined one."""

    _measured: dict[int, Candidate] = field(default_factory=dict)

    @cached_property
    def candidates(self) -> dict[int, Candidate]:
        """All sizes of a study, measured for a few seconds."""
        request, seconds = self.request, _MEASURING_SECONDS
        if request.seconds is not None:
            seconds = min(seconds, _MEASURING_SHARE * request.seconds)
        found = measure(request.architecture, WIDTHS, seconds, self.dial.vocab, self.dial.length)
        return {candidate.width: candidate for candidate in found}

    def for_seconds(self, seconds: float) -> Allocation:
        sizes = [size for size in map(self.dial.at, range(len(WIDTHS))) if size.width in self.candidates]
        best = min(sizes, key=lambda size: self.law.loss(self.law.count(size), self.tokens_in(size, seconds)))
        return self._allocated(best, self.tokens_in(best, seconds))

    def tokens_in(self, size: Size, seconds: float) -> float:
        return tokens_within(self._candidate(size), seconds, EVALUATIONS)

    def seconds_of(self, size: Size, how: Recipe) -> float | None:
        tokens = how.trainer.steps * how.batch * how.length
        return expected_seconds(self._candidate(size), tokens, EVALUATIONS)

    def ranking(self, job: Job) -> Ranking:
        step = self._candidate(job.size).step_seconds(job.batch)
        memory = predict_memory(job.size.config, Workload(job.batch, job.size.length))
        products = min(step, job.size.flops_per_token * job.tokens / self.fleet.flops)
        found = Cost(Layout(ParallelConfig()), memory.at_peak, {"products": products, "elements": step - products})
        fits = found.memory_bytes <= self.fleet.memory_bytes
        return Ranking((found,) if fits else (), () if fits else (found,), (), self.fleet.memory_bytes)

    def unsharded(self, job: Job) -> Cost | None:
        return None

    def _candidate(self, size: Size) -> Candidate:
        if "candidates" in self.__dict__ and size.width in self.candidates:
            return self.candidates[size.width]
        if size.width not in self._measured:
            if size.total > 3e9:
                raise InputError(
                    f"params, flops: {size.total:.3g} parameters are too many to be timed here; name a --device"
                )
            self._measured[size.width] = measure_width(size.architecture, size.width, self.dial.vocab, self.dial.length)
        return self._measured[size.width]
