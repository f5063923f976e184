"""The recorded step as a trace that Perfetto and chrome://tracing open: parts, modules and ops on lines, memory below.

The format is the Trace Event Format's JSON: complete events ("X"), counters ("C") and names ("M"), times in µs.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from verim.anatomy.ledger import Record, Span
from verim.runtime.files import write_text

MOST_BYTES = 20 * 10**6
"""No trace is larger: the shortest ops are left out, and the trace says how many."""
_EVENT_BYTES = 230  # of an op's event, about
_LINES = {"part": 1, "module": 2, "op": 3}


def trace_of(record: Record, most_events: int = MOST_BYTES // _EVENT_BYTES) -> dict[str, Any]:
    """The trace as JSON values; of more than `most_events` spans the longest."""
    spans = sorted([*record.spans, *module_spans(record.spans)], key=lambda span: -span.seconds)
    kept = sorted(spans[:most_events], key=lambda span: (span.begin, -span.seconds))
    events = [
        _name("process_name", 0, "a training step"),
        *(_name("thread_name", n, f"{k}s") for k, n in _LINES.items()),
    ]
    events += [_event(span) for span in kept]
    timeline = record.memory.timeline
    for index, second in enumerate(timeline.seconds):
        values = {name: sizes[index] for name, sizes in timeline.bytes.items()}
        events.append({"ph": "C", "name": "memory", "pid": 1, "ts": 1e6 * second, "args": values})
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"device": record.device, "left_out": len(spans) - len(kept)},
    }


def write_trace(record: Record, path: Path) -> None:
    """Writes the trace to `path`. Raises `OSError` where that cannot be written."""
    write_text(path, json.dumps(trace_of(record), separators=(",", ":")))


def module_spans(spans: Iterable[Span]) -> Iterator[Span]:
    """A span for every stretch of ops of one module, and for every module around it."""
    open_spans: list[tuple[str, float, float]] = []  # name, begin, end
    for span in sorted((span for span in spans if span.track == "op"), key=lambda span: span.begin):
        path = _path(span.module)
        while open_spans and open_spans[-1][0] not in path:
            yield _module(*open_spans.pop())
        end = span.begin + span.seconds
        open_spans = [(name, begin, end) for name, begin, _ in open_spans]
        known = {name for name, _, _ in open_spans}
        open_spans += [(name, span.begin, end) for name in path if name not in known]
    while open_spans:
        yield _module(*open_spans.pop())


def _path(module: str) -> list[str]:
    """The module and those around it, from the outside: "a.b" lies in "a"."""
    words = module.split(".") if module else []
    return [".".join(words[: count + 1]) for count in range(len(words))]


def _module(name: str, begin: float, end: float) -> Span:
    return Span(name, "module", begin, end - begin, name)


def _name(kind: str, line: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": 1, "tid": line, "args": {"name": name}}


def _event(span: Span) -> dict[str, Any]:
    event: dict[str, Any] = {
        "ph": "X",
        "name": span.name,
        "cat": span.track,
        "pid": 1,
        "tid": _LINES[span.track],
        "ts": round(1e6 * span.begin, 3),
        "dur": round(1e6 * span.seconds, 3),
    }
    if span.track == "op":
        event["args"] = {"module": span.module, "flops": span.flops, "bytes": span.bytes}
    return event
