"""A plan on the terminal: what to train, what to expect, how to lay it out and why so."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHORT = {
    "data": "data",
    "shard": "shard",
    "tensor": "tensor",
    "pipeline": "pipe",
    "context": "ctx",
    "expert": "expert",
}
_SECONDS_A_DAY = 86_400


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """The tables of a plan, `Answer.to_json`; its warnings last."""
    _heading(console, "The plan")
    console.print(_facts(_what(plan)))
    _heading(console, "What to expect")
    console.print(_facts(_expected(plan)))
    if plan["quarter"] is not None or plan["quadruple"] is not None:
        _heading(console, "A quarter of the budget, and four times as much")
        console.print(_scaled(plan))
    if plan["life_cycle"] is not None:
        life = plan["life_cycle"]
        _heading(console, f"Over a life of {_count(life['inference_tokens'])} tokens of inference")
        console.print(_life(life))
    if plan["count"] > 1:
        _layouts(plan, console)
    if plan["warnings"]:
        console.print()
    for warning in plan["warnings"]:
        console.print(Text(f"Warning: {warning}", style="yellow"))


def print_trial(plan: Mapping[str, Any], console: Console) -> None:
    """What was predicted beside what came of the run in `plan["run"]`."""
    run = plan["run"]
    _heading(console, f"Predicted and achieved: {run['directory']}")
    rows = []
    for name, key, told in (
        (f"loss, {plan['unit']}", "loss", lambda value: f"{value:.4f}"),
        ("time", "seconds", _duration),
        ("memory of a step", "memory_bytes", lambda value: f"{value / 1e6:,.1f} MB"),
    ):
        figures = run[key]
        rows.append((name, told(figures["predicted"]), told(figures["achieved"]), f"{figures['error']:+.1%}"))
    console.print(_table(("", "predicted", "achieved", "error"), rows))


def _what(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    counted = "" if plan["counts"] == "total" else f", {_count(plan['counted'])} {plan['counts']}"
    return [
        ("model", f"{plan['architecture']}, width {plan['width']:,}, depth {plan['depth']}"),
        ("parameters", f"{_count(plan['parameters'])} total{counted}"),
        ("tokens", f"{_count(plan['tokens'])}: {plan['tokens_per_parameter']:.3g} a parameter"),
        (
            "batch",
            f"{plan['batch']:,} sequences of {plan['length']:,} = {_count(plan['batch_tokens'])} tokens, "
            f"{plan['steps']:,} steps",
        ),
        ("learning rate", f"{plan['learning_rate']:g} (AdamW; matrices take their share by width)"),
        ("training FLOPs", f"{plan['flops']:.3g}"),
        ("law", f"{plan['law']}"),
    ]


def _expected(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("loss", f"{plan['loss']:.4g} {plan['unit']}{_band(plan)}")]
    fleet = plan["device"] if plan["count"] == 1 else f"{plan['count']:,} × {plan['device']}"
    if plan["seconds"] is None:
        rows.append(("time", f"none: it does not fit on {fleet}"))
    else:
        rows.append(("time", f"{_duration(plan['seconds'])} on {fleet}, {plan['utilisation']:.0%} of their peak"))
    if plan["energy_joules"] is not None:
        rows.append(("energy", f"{plan['energy_joules'] / 3.6e6:,.4g} kWh at the devices' limit"))
    if plan["cost"] is not None:
        rows.append(("cost", f"{plan['cost']:,.2f}"))
    memory, available = plan["memory_bytes"], plan["memory_available_bytes"]
    rows.append(("memory a device", f"{_bytes(memory)} of {_bytes(available)}"))
    return rows


def _scaled(plan: Mapping[str, Any]) -> Table:
    rows = []
    for name, at in (("a quarter", plan["quarter"]), ("the plan", plan), ("four times", plan["quadruple"])):
        if at is not None:
            time = "does not fit" if at["seconds"] is None else _duration(at["seconds"])
            loss = f"{at['loss']:.4g}"
            rows.append((name, _count(at["parameters"]), _count(at["tokens"]), f"{at['flops']:.2g}", time, loss))
    return _table(("", "parameters", "tokens", "FLOPs", "time", "loss"), rows)


def _life(life: Mapping[str, Any]) -> Table:
    rows = []
    for name, key in (("the plan", "planned"), ("cheapest, same loss", "cheapest")):
        at = life[key]
        flops = (at["training_flops"], at["inference_flops"], at["total_flops"])
        each = (_count(at["parameters"]), _count(at["tokens"]), f"{at['tokens_per_parameter']:.3g}")
        rows.append((name, *each, *(f"{value:.2e}" for value in flops)))
    table = _table(("", "N", "tokens", "D/N", "training", "inference", "FLOPs"), rows)
    table.caption = f"a smaller model that reads longer saves {life['saved']:.0%} of the FLOPs of its life"
    table.caption_justify = "left"
    return table


def _layouts(plan: Mapping[str, Any], console: Console) -> None:
    _heading(console, f"Layouts over {plan['count']:,} devices: the best {len(plan['layouts'])}")
    rows = [
        (
            _divides(layout),
            _settings(layout),
            f"{layout['memory_bytes'] / 1e9:.1f}",
            f"{layout['step_seconds']:.3g}",
            f"{layout['utilisation']:.0%}",
        )
        for layout in plan["layouts"]
    ]
    if rows:
        console.print(_table(("ranks", "settings", "GB", "s/step", "peak"), rows, left=2))
    for number, layout in enumerate(plan["layouts"][1:], 2):
        console.print(Text(f"{number}. loses by {layout['why']}", style="dim"))
    for loser in plan["losers"]:
        console.print(Text(f"{loser['count']:,} more by {loser['cause']}, at best {loser['nearest']}", style="dim"))
    refused = sum(rule["count"] for rule in plan["refused"])
    if refused:
        first = ", ".join(f"{rule['count']:,} {rule['rule']}" for rule in plan["refused"][:2])
        console.print(Text(f"{refused:,} divisions cannot be: {first}, ...", style="dim"))


def _divides(layout: Mapping[str, Any]) -> str:
    named = [f"{short} {layout[name]}" for name, short in _SHORT.items() if layout[name] > 1]
    return " × ".join(named) or "one device"


def _settings(layout: Mapping[str, Any]) -> str:
    said = []
    if layout["shard"] > 1 or layout["offload"]:
        said.append(f"ZeRO {layout['zero']}")
    if layout["sequence_parallel"]:
        said.append("sequence")
    if layout["pipeline"] > 1:
        said.append(f"{layout['pipeline_schedule']}, {layout['micro_batches']} micro-batches")
    if layout["accumulation"] > 1:
        said.append(f"{layout['accumulation']} parts")
    if layout["activation_checkpointing"] != "none":
        said.append(f"recompute {layout['activation_checkpointing']}")
    if layout["offload"]:
        said.append("offload")
    return ", ".join(said) or "–"


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """The first `left` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=number >= left, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _band(at: Mapping[str, Any]) -> str:
    if at["interval"] is None:
        return ""
    low, high = at["interval"]
    return f" ({low:.4g} to {high:.4g}, {at['interval_percent']} %)"


def _count(value: float) -> str:
    """1.23 B, as people say it."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds >= 2 * _SECONDS_A_DAY:
        return f"{seconds / _SECONDS_A_DAY:,.1f} days"
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"
