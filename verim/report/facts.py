"""What stands behind the findings: time, runs, noise, corpus, machine, conventions."""

from collections.abc import Iterable
from typing import Any

from verim.report import words
from verim.report.html import Markup, element, joined
from verim.report.parts import Column, card, facts_list, named_as, panel, paragraph, section, table
from verim.report.words import Study, at, entries

_PARTS = {
    "corpus": "Reading the corpus",
    "calibration": "Measuring the machine",
    "ladder": "Training the ladder",
    "fit": "Fitting the laws",
    "target": "Training the target",
    "page": "Writing this page",
}


def time(study: Study) -> Markup | None:
    """A bar for each part of the study's time, and one for what no part covers."""
    parts = {name: took for name, took in (at(study["seconds"], "parts") or {}).items() if took is not None}
    total = at(study["seconds"], "total")
    if total is None:
        total = sum(parts.values())
    rest = total - sum(parts.values())
    if rest > 0.01 * total:
        parts["everything else"] = rest
    if not parts or total <= 0:
        return None
    lines = []
    for name, took in parts.items():
        fill = element("i", style=f"width:{100 * min(1.0, took / total):.2f}%")
        lines.append(
            joined(
                element("span", _PARTS.get(name, name)),
                element("span", fill, class_="bar", aria_hidden="true"),
                element("span", words.duration(took), class_="number"),
                element("span", words.percent(took / total), class_="number quiet"),
            )
        )
    minutes = at(study["options"], "minutes")
    asked = "" if minutes is None else f" It was given {words.duration(60 * minutes)} in all"
    proof = at(study["options"], "target_minutes")
    if asked:
        asked += "." if proof is None else f", {words.duration(60 * proof)} of them for the proof."
    return section(
        "Where the time went",
        paragraph(f"The whole study took {words.duration(total)}.{asked}"),
        panel(element("div", *lines, class_="bars")),
    )


def runs(study: Study) -> Markup:
    """The noise between seeds; folded away, the table of every run of the ladder and the rules behind each."""
    rows = [
        [
            named_as(study, name),
            words.scientific(run["budget"]),
            words.quantity(run["non_embedding"]),
            words.quantity(run["total"]),
            f"{words.shown(run['width'])} × {words.shown(run['depth'])}",
            words.quantity(run["tokens"]),
            words.quantity(run["batch_tokens"]),
            words.significant(run["learning_rate"], 2),
            words.quantity(run["steps"]),
            words.shown(run["seed"]),
            words.number(run["bits_per_byte"]),
            words.duration(run["seconds"]),
            words.quantity(run["flops_per_second"], "FLOP/s"),
        ]
        for name, found in words.architectures(study).items()
        for run in entries(found.get("runs"))
    ]
    headings = (
        "FLOPs", "N non-embedding", "N total", "Width × depth", "Bytes", "Batch", "Learning rate", "Steps",
        "Seed", "Bits per byte", "Time", "Speed",
    )  # fmt: skip
    columns = [Column("Architecture", "text"), *(Column(heading) for heading in headings)]
    counted = f"All {len(rows)} runs of the ladder" if len(rows) != 1 else "The one run of the ladder"
    listed = element("details", element("summary", counted), table("Runs of the ladder", columns, rows))
    return section(
        "The runs",
        _noise(study),
        panel(listed) if rows else paragraph("No run has finished.", quiet=True),
        _rules(words.rules(study)),
    )


def _rules(rules: list[tuple[str, str]]) -> Markup | None:
    """What gave every run its depth, batch, learning rate and the rest."""
    if not rules:
        return None
    summary = element("summary", "The rules that every run follows")
    return element("div", element("details", summary, facts_list(rules)), class_="panel card")


def _noise(study: Study) -> Markup:
    deviation = at(study["noise"], "standard_deviation_bits_per_byte")
    if deviation is None:
        sentence = "The noise between seeds is not known: no run was repeated."
    else:
        sentence = (
            "The same model trained again from another seed differs by a standard deviation of "
            f"{words.significant(deviation, 2)} bits per byte. Differences of that size mean nothing."
        )
    rows = [
        [
            named_as(study, run["architecture"]),
            words.scientific(run["budget"]),
            words.shown(run["width"]),
            ", ".join(str(seed) for seed in entries(run["seeds"])),
            ", ".join(words.number(loss) for loss in entries(run["bits_per_byte"])),
        ]
        for run in entries(at(study["noise"], "runs"))
    ]
    columns = [
        Column("Repeated", "text"),
        Column("FLOPs"),
        Column("Width"),
        Column("Seeds"),
        Column("Bits per byte"),
    ]
    return joined(paragraph(sentence), panel(table("Repeated runs", columns, rows)) if rows else None)


def cards(study: Study) -> Markup:
    """The corpus, the machine, and by which conventions the numbers are counted."""
    corpus, machine, conventions = (study[name] or {} for name in ("corpus", "machine", "conventions"))
    return section(
        "What was measured, where and how",
        element("div", _corpus(corpus), _machine(machine), class_="grid"),
        card(
            "Conventions",
            [
                ("FLOPs", conventions.get("flops")),
                ("Parameters", conventions.get("parameters")),
                ("Loss", conventions.get("loss")),
            ],
        ),
    )


def _corpus(corpus: dict[str, Any]) -> Markup:
    paths = entries(corpus.get("paths"))
    skipped, twice = words.quantity(corpus.get("skipped")), words.quantity(corpus.get("duplicates"))
    documents = words.quantity(corpus.get("held_out_documents"))
    return card(
        "The corpus",
        [
            ("Name", corpus.get("name")),
            ("Paths", _list(paths) if paths else None),
            ("Documents", words.quantity(corpus.get("documents"))),
            ("Left out", f"{skipped} not text, {twice} duplicates"),
            ("Size", _size(corpus.get("bytes"))),
            ("To train on", _size(corpus.get("train_bytes"))),
            ("Held out", f"{_size(corpus.get('held_out_bytes'))} in {documents} documents"),
            ("SHA-256", element("span", corpus.get("sha256") or words.UNKNOWN, class_="mono")),
        ],
    )


def _machine(machine: dict[str, Any]) -> Markup:
    matmul = machine.get("matmul_flops_per_second")
    software = [("Python", "python"), ("PyTorch", "torch"), ("Numba", "numba")]
    return card(
        "The machine",
        [
            ("Processor", machine.get("processor")),
            ("Cores", f"{words.shown(machine.get('cores'))}, {words.shown(machine.get('threads'))} threads used"),
            ("Memory", _size(machine.get("memory_bytes"))),
            ("Graphics", machine.get("gpu") or "none"),
            ("Copy", words.quantity(machine.get("copy_bytes_per_second"), "B/s")),
            ("Matmul, float32", words.quantity(at(matmul, "float32"), "FLOP/s")),
            ("Matmul, bfloat16", words.quantity(at(matmul, "bfloat16"), "FLOP/s")),
            ("Launching an op", words.duration(machine.get("launch_seconds"))),
            ("System", machine.get("os")),
            ("Software", ", ".join(f"{name} {words.shown(machine.get(key))}" for name, key in software)),
        ],
    )


def _size(count: Any) -> str:
    return words.quantity(count, "B")


def _list(items: Iterable[object]) -> Markup:
    return element("ul", *(element("li", item, class_="mono") for item in items))
