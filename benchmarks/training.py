"""A training step beside transformers': the same weights, the same batch, AdamW and clipping on both sides.

    python benchmarks/training.py [--families llama mamba rwkv] [--batch 16] [--length 256] [--rounds 5] [--no-compile]

About ten million parameters, byte tokens. First the losses of four steps are compared in float32. Then the sides take
turns in one process: transformers eager and compiled, in float32 and under bfloat16 autocast (its Mamba with mambapy,
on 4 rows, all that there is memory and patience for); ours in float32 and under bfloat16 autocast. The table shows the
median tokens a second of each; the ratio is our best over their best.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from generation import FAMILIES, VOCAB, models_of
from torch import Tensor, nn

from verim.runtime.allocator import keep_freed_blocks
from verim.train.optimisers import AdamWConfig, clipped_step, gradient_norm
from verim.train.precision import Precision
from verim.train.task import next_token_loss

RATE, CLIP = 1e-3, 1.0
ROWS_OF_THEIRS = {"mamba": 4}
Step = Callable[[Tensor, Tensor], Tensor]


def of_transformers(model: nn.Module, kind: str, is_compiled: bool) -> Step:
    """Its own loss of next tokens, torch's clipping and fused AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0, fused=True)
    called = torch.compile(model) if is_compiled else model
    precision = Precision(kind)

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        with precision.autocast("cpu"):
            logits = called(inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    return step


def of_verim(model: nn.Module, kind: str) -> Step:
    """What the trainer does in a step."""
    precision = Precision(kind)
    config = AdamWConfig(learning_rate=RATE, beta1=0.9, beta2=0.95, weight_decay=0, rates="plain")
    optimiser = precision.build(config, model)

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        with precision.autocast("cpu"):
            loss = next_token_loss(model, inputs, targets)
        loss.backward()
        clipped_step(optimiser, gradient_norm(model.parameters()), CLIP)
        optimiser.zero_grad()
        return loss.detach()

    return step


def sides_of(family: str, compile_too: bool) -> dict[str, Step]:
    """By name: the steps of transformers' model and of ours, all from the same weights."""
    theirs, ours = models_of(family)
    theirs.train()
    if family == "mamba":
        theirs.config.use_mambapy = True
        for module in theirs.modules():
            if hasattr(module, "use_mambapy"):
                module.use_mambapy = True
    sides: dict[str, Step] = {}
    for kind in ("float32", "bfloat16"):
        for is_compiled in (False, True) if compile_too else (False,):
            name = f"transformers {kind}{' compiled' * is_compiled}"
            sides[name] = of_transformers(copy.deepcopy(theirs), kind, is_compiled)
    for kind in ("float32", "bfloat16"):
        sides[f"verim {kind}"] = of_verim(copy.deepcopy(ours).train(), kind)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    keep_freed_blocks()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for family in arguments.families:
        sides = sides_of(family, not arguments.no_compile)
        tokens = torch.randint(VOCAB, (arguments.batch, arguments.length + 1))

        def run(name: str, tokens: Tensor = tokens, family: str = family, sides: Any = sides) -> tuple[float, float]:
            rows = tokens[: ROWS_OF_THEIRS.get(family)] if name.startswith("transformers") else tokens
            began = time.perf_counter()
            loss = sides[name](rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).item()
            return loss, rows[:, 1:].numel() / (time.perf_counter() - began)

        losses: dict[str, list[float]] = {name: [] for name in sides}
        for name in list(sides):
            try:
                losses[name] = [run(name)[0] for _ in range(4)]
            except Exception as error:  # a compiler that cannot: the side is left out, and said
                print(f"{family}: {name} fails: {str(error).splitlines()[0][:100]}")
                del sides[name]
        same_rows = family not in ROWS_OF_THEIRS
        if same_rows:
            torch.testing.assert_close(losses["verim float32"], losses["transformers float32"], rtol=1e-3, atol=1e-3)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name in sides:
                rates[name].append(run(name)[1])
        middle = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in middle.items():
            print(f"{family:6} {name:30} {rate:8.0f} tokens/s   losses {[round(x, 4) for x in losses[name]]}")
        ours, theirs = (max(rate for name, rate in middle.items() if name.startswith(who)) for who in ("verim", "tr"))
        print(f"{family:6} verim's best over transformers' best: {ours / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main()
