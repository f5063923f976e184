"""The page of the Mixture-of-Recursions experiment: what was found, and what the paper says beside it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from verim import __version__
from verim.anatomy.machine import machine_card
from verim.runtime.files import write_text

Record = Mapping[str, Any]
PAPER_DECODING = {  # Bae et al. 2025, figure 4a: batch 32, and the largest; without cache writes (appendix E)
    "mor-2": {"equal": 1.23, "largest": 1.60},
    "mor-3": {"equal": 1.33, "largest": 1.95},
    "mor-4": {"equal": 1.42, "largest": 2.06},
}

_PAGE = """# Mixture-of-Recursions, beside what it is to replace

Written by `python -m verim.recipes.mor`; verim/recipes/mor.py says what is trained and how.

{conditions}

Transformers of {depth} applied blocks of width {width}, bytes of the default corpus in sequences of {length}, batch
{batch}, AdamW at {learning_rate:g}. *recursive-N*: middle-cycle, every block between the first and the last one applied
N times. *mor-N*: the same with expert-choice routing, capacities N/N ... 1/N, α = {alpha:g}; evaluated and decoded by
threshold. *small-N*: a plain transformer with as many blocks as those have of their own. Bits per byte of held-out
text, mean ± standard error over seeds (no error with one seed). FLOPs are forward and backward; the paper counts the
forward pass alone (a third).

## Equal tokens

{tokens}

Time and memory against vanilla; the paper (section 3.1, N = 2): −19 % time, −25 % peak memory, −25 % FLOPs.

## Equal FLOPs

{flops}

In the paper (table 3, 360M base) mor-2 alone is better than vanilla at equal FLOPs, and recursive-N is worse.

## Equal unique parameters, equal FLOPs

{unique}

## Routing

{routing}

Sampling accuracy: how often the threshold decides as training chose, by recursion (last ten steps). Dead: positions at
which no sequence of the last batch took the last recursion. MaxVio: (largest load - mean) / mean over depths, in
evaluation.

## Decoding

{decoding}

Greedy, from one token on; embedding, routers, cache writes, head and drawing counted, which the paper leaves out in
part (appendix E). Largest: as many sequences as fit into the memory of vanilla's weights and caches at
equal batch.
"""


def write_page(path: Path, records: Sequence[Record], speeds: Sequence[Record], settings: Mapping[str, Any]) -> None:
    """Writes the page of all trials and of the decoding speeds to `path`."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["model"], record["budget"]), []).append(record)
    plain = found.get(("vanilla", "tokens"), [])
    at_tokens = [name for name, budget in found if budget == "tokens"]
    kept = ("depth", "width", "length", "batch", "learning_rate", "alpha")
    text = _PAGE.format(
        conditions=_conditions(records),
        **{name: settings[name] for name in kept},
        tokens=_table(
            (
                "model",
                "parameters",
                "bits per byte",
                "FLOPs",
                "seconds",
                "against vanilla",
                "peak memory",
                "against vanilla",
            ),
            [_cost_row(name, found[name, "tokens"], plain) for name in at_tokens],
        ),
        flops=_table(
            ("model", "parameters", "tokens", "bits per byte", "against vanilla"),
            [_loss_row(name, _at_flops(found, name), plain) for name in at_tokens],
        ),
        unique=_table(
            ("parameters", "small-N", "recursive-N", "mor-N"),
            [
                (
                    f"{_mean(found[f'small-{n}', 'flops'], 'parameters'):,.0f}",
                    *(_loss(_at_flops(found, f"{kind}-{n}")) for kind in ("small", "recursive", "mor")),
                )
                for n in (2, 3, 4)
                if (f"small-{n}", "flops") in found
            ],
        ),
        routing=_table(
            ("model", "mean depth", "sampling accuracy", "dead", "MaxVio"),
            [_routing_row(name, found[name, "tokens"]) for name in at_tokens if name.startswith("mor")],
        ),
        decoding=_table(
            ("model", "batch", "tokens a second", "against vanilla", "the paper", "mean depth"),
            [_speed_row(speed, speeds) for speed in speeds],
        ),
    )
    write_text(path, text)


def _at_flops(found: Mapping[tuple[str, str], list[Record]], name: str) -> list[Record]:
    """Recursive models have vanilla's FLOPs at vanilla's tokens."""
    return found.get((name, "flops"), []) or found.get((name, "tokens"), [])


def _mean(records: Sequence[Record], name: str) -> float:
    return mean(record[name] for record in records)


def _loss(records: Sequence[Record]) -> str:
    if not records:
        return "not run"
    values = [record["bits_per_byte"] for record in records]
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{error}"


def _against(records: Sequence[Record], plain: Sequence[Record], name: str) -> str:
    return f"{100 * (_mean(records, name) / _mean(plain, name) - 1):+.0f} %" if plain else "–"


def _cost_row(name: str, records: Sequence[Record], plain: Sequence[Record]) -> tuple[str, ...]:
    return (
        name,
        f"{_mean(records, 'parameters'):,.0f}",
        _loss(records),
        f"{_mean(records, 'flops'):.3g}",
        f"{_mean(records, 'seconds'):.0f}",
        _against(records, plain, "seconds"),
        f"{_mean(records, 'peak_bytes') / 1e6:.0f} MB",
        _against(records, plain, "peak_bytes"),
    )


def _loss_row(name: str, records: Sequence[Record], plain: Sequence[Record]) -> tuple[str, ...]:
    difference = _mean(records, "bits_per_byte") - _mean(plain, "bits_per_byte") if plain else 0.0
    return (
        name,
        f"{_mean(records, 'parameters'):,.0f}",
        f"{_mean(records, 'tokens'):.3g}",
        _loss(records),
        f"{difference:+.3f}",
    )


def _routing_row(name: str, records: Sequence[Record]) -> tuple[str, ...]:
    accuracies = zip(*(record["sampling_accuracy"] for record in records), strict=True)
    return (
        name,
        f"{_mean(records, 'mean_depth'):.2f}",
        ", ".join(f"{100 * mean(one):.1f} %" for one in accuracies),
        f"{100 * _mean(records, 'dead'):.1f} %",
        f"{_mean(records, 'largest_violation'):.2f}",
    )


def _speed_row(speed: Record, speeds: Sequence[Record]) -> tuple[str, ...]:
    plain = next(s for s in speeds if s["model"] == "vanilla" and s["kind"] == speed["kind"])
    said = PAPER_DECODING.get(speed["model"], {}).get(speed["kind"])
    return (
        speed["model"],
        f"{speed['batch']} ({speed['kind']})",
        f"{speed['tokens_per_second']:.0f}",
        f"{speed['tokens_per_second'] / plain['tokens_per_second']:.2f}",
        "–" if said is None else f"{said:.2f}",
        "–" if not speed["mean_depth"] else f"{speed['mean_depth']:.2f}",
    )


def _conditions(records: Sequence[Record]) -> str:
    machine = machine_card()
    hours = sum(record["seconds"] for record in records) / 3600
    return (
        f"{datetime.now().astimezone().date()}, {machine['processor']}, {machine['cores']} cores, a thread a trial; "
        f"verim {__version__}, torch {machine['torch']}, Python {machine['python']}. {len(records)} trials, "
        f"{hours:.2f} hours of one core; {len({record['seed'] for record in records})} seeds."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
