"""The ledger of a step: its parts, the modules and ops in them, its memory; plain values that survive JSON."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from verim.anatomy.ceilings import Ceilings
from verim.anatomy.memory import Memory

Bound = Literal["compute", "memory", "launch"]

ABOVE = 1.15
"""A rate this many times the ceiling is reported as an error of ours; below it is the noise of the clock."""
_SHORTEST_JUDGED = 2e-5
"""Seconds of a call below which its rate says more of the clock than of the op."""
CLOSED = 0.02
"""The ledger closes where the parts sum to the step within this share of it."""


@dataclass(frozen=True)
class Op:
    """All calls of equal cost of an op in one part of a step and one module; figures are of all its calls in a step.

    - `seconds`: inside the op; `overhead_seconds`: its share of what passes between ops (Python, the dispatcher,
      autograd, allocation).
    - `flops`: of products, convolutions, attention, scans and our kernels; a multiply-add is 2. `vector_flops`: of
      elementwise ops and reductions, one for each function of an element.
      `recomputed_flops`: forward work done a second time in the backward pass, by a kernel or by checkpointing.
    - `bytes_read`, `bytes_written`: each argument once, each result once.
    - `shape`: of its largest tensor argument.
    """

    name: str
    part: str
    module: str
    dtype: str
    calls: float
    seconds: float
    overhead_seconds: float
    flops: float
    vector_flops: float
    bytes_read: float
    bytes_written: float
    recomputed_flops: float = 0.0
    shape: tuple[int, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Its share of the step."""
        return self.seconds + self.overhead_seconds

    @property
    def bytes(self) -> float:
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, FLOPs a byte; 0 where no byte moves."""
        return self.hardware_flops / self.bytes if self.bytes else 0.0

    @property
    def hardware_flops(self) -> float:
        """All that is computed: what the mathematics needs, and what is done again."""
        return self.flops + self.vector_flops + self.recomputed_flops

    def limits(self, ceilings: Ceilings) -> dict[Bound, float]:
        """Seconds that each limit of the machine alone would take."""
        size = self.bytes / self.calls if self.calls else 0.0
        compute = self.hardware_flops / ceilings.flops_per_second(self.dtype)
        memory = self.bytes / ceilings.bytes_per_second(size)
        return {"compute": compute, "memory": memory, "launch": self.calls * ceilings.launch_seconds}

    def bound_by(self, ceilings: Ceilings) -> Bound:
        """Launch, where launching it and what passes between ops take longer than the op, or the op neither computes
        nor moves anything (a view); else the higher limit."""
        limits = self.limits(ceilings)
        has_work = self.bytes or self.hardware_flops
        if not has_work or max(limits["launch"], self.overhead_seconds) > self.seconds:
            return "launch"
        return "compute" if limits["compute"] > limits["memory"] else "memory"

    def fraction_of_peak(self, ceilings: Ceilings) -> float:
        """The least seconds that compute and memory allow, over those that the op took."""
        limits = self.limits(ceilings)
        return max(limits["compute"], limits["memory"]) / self.seconds if self.seconds else 0.0

    def is_above_ceiling(self, ceilings: Ceilings) -> bool:
        """Whether its rate is impossible, which is an error of ours: of a count or of a ceiling."""
        judged = self.calls > 0 and self.seconds / self.calls >= _SHORTEST_JUDGED
        return judged and self.fraction_of_peak(ceilings) > ABOVE


@dataclass(frozen=True)
class Part:
    """A part of the step and its seconds: a mean over the recorded steps, the slowest and the fastest left out."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Module:
    """A module in the tree of the model, with what happened in it in every part of a step, its children's included.

    `calls` is how often its forward was called in a step: 0 for one that is never called.
    """

    name: str
    kind: str
    calls: float
    seconds: dict[str, float]
    flops: float
    bytes: float
    parameters: int
    children: tuple["Module", ...] = ()

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def walk(self) -> Iterable["Module"]:
        """Itself and everything below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class ModuleFact:
    """What is known of a module before anything is measured, and how often it was called in a step."""

    name: str
    kind: str
    parameters: int
    calls: float


@dataclass(frozen=True)
class Overhead:
    """What recording costs, as shares of an unrecorded step: 0.03 is 3 %; None where it was not measured."""

    parts: float | None
    ops: float | None


@dataclass(frozen=True)
class Counts:
    """How many steps of each kind the figures rest on."""

    unrecorded: int
    parts: int
    ops: int


@dataclass(frozen=True)
class Record:
    """Where the seconds, FLOPs and bytes of a training step went.

    - `step_seconds`: of a step that nobody records, where there was one.
    - `parts`: in the order of `verim.runtime.phases.PHASES`. `remainder_seconds` is what is left of the step.
    - `ops`: by falling time. `facts`: the modules in the order of `named_modules`.
    - `notes`: what a reader should know, in sentences: what was scaled, skipped, or is suspect.
    """

    device: str
    step_seconds: float
    parts: tuple[Part, ...]
    ops: tuple[Op, ...]
    facts: tuple[ModuleFact, ...]
    memory: Memory
    ceilings: Ceilings
    overhead: Overhead
    counts: Counts
    notes: tuple[str, ...] = ()
    spans: tuple["Span", ...] = field(default=(), repr=False)

    @property
    def remainder_seconds(self) -> float:
        """The step less its parts; negative where the recorded steps were slower than the unrecorded ones."""
        return self.step_seconds - sum(part.seconds for part in self.parts)

    @property
    def closes(self) -> bool:
        """Whether the parts sum to the step within 2 %."""
        return abs(self.remainder_seconds) <= CLOSED * self.step_seconds

    @property
    def flops(self) -> float:
        """Of a step, recomputation apart: what the model needs."""
        return sum(op.flops for op in self.ops)

    @property
    def recomputed_flops(self) -> float:
        """Of forward ops done again in the backward pass. Hardware FLOPs are both."""
        return sum(op.recomputed_flops for op in self.ops)

    @property
    def utilisation(self) -> float:
        """Model FLOPs over what the machine's measured peak could do in the step, in the type of most FLOPs."""
        by_type: dict[str, float] = {}
        for op in self.ops:
            by_type[op.dtype] = by_type.get(op.dtype, 0.0) + op.flops
        if not self.flops:
            return 0.0
        peak = self.ceilings.flops_per_second(max(by_type, key=lambda name: by_type[name]))
        return self.flops / (self.step_seconds * peak)

    def bound_seconds(self) -> dict[Bound, float]:
        """Seconds of the step by what they wait for."""
        seconds: dict[Bound, float] = {"compute": 0.0, "memory": 0.0, "launch": 0.0}
        for op in self.ops:
            bound = op.bound_by(self.ceilings)
            if bound == "launch":
                seconds["launch"] += op.total_seconds
            else:
                seconds[bound] += op.seconds
                seconds["launch"] += op.overhead_seconds
        return seconds

    def errors(self) -> tuple[Op, ...]:
        """Ops whose rate is above the measured ceiling: errors of ours."""
        return tuple(op for op in self.ops if op.is_above_ceiling(self.ceilings))

    def grouped(self, key: Callable[[Op], Any]) -> dict[Any, Op]:
        """Ops summed over what `key` makes equal, by falling time; the names are those of the first of each group."""
        groups: dict[Any, list[Op]] = {}
        for op in self.ops:
            groups.setdefault(key(op), []).append(op)
        summed = {name: summed_ops(group) for name, group in groups.items()}
        return dict(sorted(summed.items(), key=lambda item: -item[1].total_seconds))

    def modules(self) -> Module:
        """The tree of modules. The root's seconds are those of all parts whose ops lie in the model."""
        return tree_of(self.facts, self.ops)

    def to_json(self) -> dict[str, Any]:
        """JSON values; spans are left out, they are the trace's."""
        errors = [f"{op.name} in {op.module or 'the model'}" for op in self.errors()]
        return {
            "device": self.device,
            "step_seconds": self.step_seconds,
            "parts": {part.name: part.seconds for part in self.parts},
            "remainder_seconds": self.remainder_seconds,
            "closes": self.closes,
            "flops": self.flops,
            "recomputed_flops": self.recomputed_flops,
            "utilisation": self.utilisation,
            "bound_seconds": self.bound_seconds(),
            "overhead": asdict(self.overhead),
            "counts": asdict(self.counts),
            "memory": self.memory.to_json(),
            "modules": asdict(self.modules()),
            "ops": [_op_json(op, self.ceilings) for op in self.ops],
            "ceilings": self.ceilings.to_json(),
            "above_ceiling": errors,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Span:
    """What happened from `begin` for `seconds` in one recorded step. `track`: "part", "module" or "op"."""

    name: str
    track: Literal["part", "module", "op"]
    begin: float
    seconds: float
    module: str = ""
    flops: float = 0.0
    bytes: float = 0.0


def summed_ops(ops: Iterable[Op]) -> Op:
    """One op with the sums of all; its words are the first's, the part or the module empty where they differ."""
    ops = list(ops)
    first = ops[0]
    return Op(
        name=first.name if all(op.name == first.name for op in ops) else "",
        part=first.part if all(op.part == first.part for op in ops) else "",
        module=first.module if all(op.module == first.module for op in ops) else "",
        dtype=max(ops, key=lambda op: (op.flops, op.seconds)).dtype,
        calls=sum(op.calls for op in ops),
        seconds=sum(op.seconds for op in ops),
        overhead_seconds=sum(op.overhead_seconds for op in ops),
        flops=sum(op.flops for op in ops),
        vector_flops=sum(op.vector_flops for op in ops),
        bytes_read=sum(op.bytes_read for op in ops),
        bytes_written=sum(op.bytes_written for op in ops),
        recomputed_flops=sum(op.recomputed_flops for op in ops),
        shape=first.shape,
    )


def tree_of(facts: Iterable[ModuleFact], ops: Iterable[Op]) -> Module:
    """The modules as a tree by their dotted names, each with the sums of the ops in and below it."""
    known = {fact.name: fact for fact in facts}
    children: dict[str, list[str]] = {name: [] for name in known}
    for name in known:
        if name:
            children[_parent(name, known)].append(name)
    own: dict[str, list[Op]] = {name: [] for name in known}
    for op in ops:
        own[op.module if op.module in own else ""].append(op)

    def build(name: str) -> Module:
        below = tuple(build(child) for child in children[name])
        seconds: dict[str, float] = {}
        for part, time in [
            *((op.part, op.total_seconds) for op in own[name]),
            *(item for child in below for item in child.seconds.items()),
        ]:
            seconds[part] = seconds.get(part, 0.0) + time
        fact = known[name]
        return Module(
            name=name,
            kind=fact.kind,
            calls=fact.calls,
            seconds=seconds,
            flops=sum(op.flops for op in own[name]) + sum(child.flops for child in below),
            bytes=sum(op.bytes for op in own[name]) + sum(child.bytes for child in below),
            parameters=fact.parameters,
            children=below,
        )

    return build("")


def _parent(name: str, known: dict[str, ModuleFact]) -> str:
    while name:
        name = name.rpartition(".")[0]
        if name in known:
            return name
    return ""


def _op_json(op: Op, ceilings: Ceilings) -> dict[str, Any]:
    return asdict(op) | {
        "intensity": op.intensity,
        "fraction_of_peak": op.fraction_of_peak(ceilings),
        "bound_by": op.bound_by(ceilings),
    }
