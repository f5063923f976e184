"""Generation beside transformers.generate: the same sizes and, where the layouts match, the same weights.

    python benchmarks/generation.py [--families llama mamba rwkv] [--batches 1 16] [--tokens 256] [--rounds 3]

Both sides take a prompt of 16 tokens per row and draw greedily, without an end token. Before anything is timed, our
greedy tokens are compared with those of transformers for each prompt alone; its own in a batch are compared too: its
RWKV gives others there, each row seeing the last inputs of all. Then the sides take turns in one process; the table
shows the medians in ms a step, their ratio, and the floor: half a copy's time for as many bytes as the weights have.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from verim.generate import Engine, Limits, Sampling
from verim.models import LanguageModel, interop
from verim.runtime.allocator import keep_freed_blocks

PROMPT = 16
VOCAB = 256
FAMILIES: dict[str, Callable[[], Any]] = {
    # about ten million parameters each
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=320,
        intermediate_size=864,
        num_hidden_layers=8,
        num_attention_heads=5,
        tie_word_embeddings=False,
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=320, num_hidden_layers=14, state_size=16, tie_word_embeddings=False
    ),
    "rwkv": lambda: transformers.RwkvConfig(
        vocab_size=VOCAB, hidden_size=320, num_hidden_layers=9, context_length=1024
    ),
}


def models_of(family: str) -> tuple[Any, LanguageModel]:
    """Transformers' model with random weights, and ours with the same."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    for weight in theirs.parameters():  # far from the nearly equal logits of a new model
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(Path(folder) / "model")
        return theirs, interop.load(Path(folder) / "model")


def of_transformers(model: Any, prompts: torch.Tensor, tokens: int) -> list[list[int]]:
    drawn = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return drawn[:, PROMPT:].tolist()


def of_verim(model: LanguageModel, prompts: torch.Tensor, tokens: int) -> list[list[int]]:
    engine = Engine(model, limits=Limits(rows=len(prompts)))
    for prompt in prompts.tolist():
        engine.add(prompt, Sampling(temperature=0, max_tokens=tokens))
    drawn: list[list[int]] = [[] for _ in prompts]
    for event in engine.events():
        drawn[event.request].append(event.token)
    return drawn


def agreement(one: list[list[int]], other: list[list[int]]) -> float:
    """The share of tokens before the first that differs: rounding may turn a near tie, and then all that follows."""
    same = 0
    for mine, theirs in zip(one, other, strict=True):
        pairs = enumerate(zip(mine, theirs, strict=True))
        same += next((place for place, (a, b) in pairs if a != b), len(mine))
    return same / sum(map(len, one))


def floor_seconds(model: LanguageModel) -> float:
    """How long a copy takes that reads as many bytes as the weights have."""
    size = sum(weight.numel() for weight in model.parameters())
    source, target = torch.ones(size), torch.empty(size)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return statistics.median(times) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_blocks()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {arguments.threads} threads, float32")
    print("family  parameters  batch  transformers  verim  ms a step  ratio  floor  same tokens: verim, transformers")
    for family in arguments.families:
        theirs, ours = models_of(family)
        floor = floor_seconds(ours)
        for batch in arguments.batches:
            prompts = torch.randint(0, VOCAB, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
            expected = [of_transformers(theirs, prompt[None], 24)[0] for prompt in prompts]
            same = agreement(expected, of_verim(ours, prompts, 24))
            if same < 0.9:
                raise SystemExit(f"{family}, batch {batch}: {same:.0%} of the greedy tokens agree; nothing is timed")
            batched = agreement(expected, of_transformers(theirs, prompts, 24))
            times: dict[str, list[float]] = {"transformers": [], "verim": []}
            for _ in range(arguments.rounds):
                for name, run, model in (("transformers", of_transformers, theirs), ("verim", of_verim, ours)):
                    began = time.perf_counter()
                    run(model, prompts, arguments.tokens)
                    times[name].append((time.perf_counter() - began) / arguments.tokens)
            peer, own = (1e3 * statistics.median(times[name]) for name in ("transformers", "verim"))
            count = ours.parameter_count().total / 1e6
            print(
                f"{family:6}  {count:8.1f} M  {batch:5}  {peer:12.2f}  {own:5.2f}             {peer / own:5.2f}  "
                f"{1e3 * floor:5.2f}  {same:6.0%}, {batched:.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
