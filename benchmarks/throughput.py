"""Throughput of attention and of recurrent models over batch sizes, under one limit of memory for their states.

    python benchmarks/throughput.py [--prompt 2048] [--tokens 128] [--limit-mb 512] [--models transformer mamba ...]

The protocol of Gu & Dao 2023 (arXiv 2312.00752, appendix E.5): a prompt of 2048 tokens, 128 generated ones, the batch
doubled until the states no longer fit (or until --most rows). Models have about ten million parameters and random
weights: speed does not depend on them. Each row says the seconds of reading the prompts and of generating, generated
tokens a second of both together and of the second alone, and the bytes of the states as measured. The last table sets
each model's best beside the transformer's best.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import GELUConfig, RWKV4ChannelMixConfig, SwiGLUConfig
from verim.nn.mixers import AttentionConfig, Mamba2Config, MambaConfig, MinGRUConfig, RWKV4Config
from verim.runtime.allocator import keep_freed_blocks

WIDTH, VOCAB = 320, 256
_CHUNK_TOKENS = 8192


def _uniform(block: BlockConfig, depth: int) -> LanguageModelConfig:
    return LanguageModelConfig((block,), WIDTH, depth, VOCAB)


MODELS: dict[str, Callable[[], LanguageModelConfig]] = {
    "transformer": lambda: _uniform(BlockConfig(AttentionConfig(heads=5), SwiGLUConfig(864)), 8),
    "grouped": lambda: _uniform(BlockConfig(AttentionConfig(heads=5, kv_heads=1), SwiGLUConfig(1024)), 8),
    "window": lambda: _uniform(BlockConfig(AttentionConfig(heads=5, window=256), SwiGLUConfig(864)), 8),
    "mamba": lambda: _uniform(BlockConfig(MambaConfig()), 14),
    "mamba2": lambda: _uniform(BlockConfig(Mamba2Config(state=64, head_dim=64)), 14),
    "rwkv4": lambda: _uniform(BlockConfig(RWKV4Config(), RWKV4ChannelMixConfig()), 9),
    "min_gru": lambda: _uniform(BlockConfig(MinGRUConfig(), GELUConfig(1280)), 9),
}


@torch.inference_mode()
def seconds_of(model: LanguageModel, prompts: torch.Tensor, tokens: int) -> tuple[float, float, int]:
    """Seconds of reading `prompts`, of `tokens` greedy steps after them, and the bytes of the states at the end."""
    began = time.perf_counter()
    chunk = max(1, _CHUNK_TOKENS // len(prompts))
    state = None
    for piece in prompts.split(chunk, dim=1):
        logits, state = model(piece, state, last=1)
    read = time.perf_counter()
    for _ in range(tokens):
        logits, state = model(logits[:, -1].argmax(-1, keepdim=True), state)
    ended = time.perf_counter()
    assert state is not None, "a prompt has at least one token"
    return read - began, ended - read, state.bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["transformer", "grouped", "mamba", "rwkv4"])
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--limit-mb", type=float, default=512)
    parser.add_argument("--most", type=int, default=64, help="rows at most, where memory would allow more")
    arguments = parser.parse_args()
    keep_freed_blocks()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; prompt {arguments.prompt}, "
        f"{arguments.tokens} generated, states of at most {arguments.limit_mb:g} MB"
    )
    print("model        parameters  batch  states MB  reading s  generating s  tokens/s  generating alone")
    best: dict[str, tuple[float, float, int]] = {}
    length = arguments.prompt + arguments.tokens
    for name in arguments.models:
        torch.manual_seed(0)
        model = LanguageModel(replace(MODELS[name](), context=length)).eval()
        seconds_of(model, torch.zeros(1, 16, dtype=torch.long), 4)  # compiles
        batch = 1
        while batch <= arguments.most and model.state_bytes(batch, length) <= arguments.limit_mb * 1e6:
            prompts = torch.randint(0, VOCAB, (batch, arguments.prompt))
            reading, generating, size = seconds_of(model, prompts, arguments.tokens)
            new = batch * arguments.tokens
            whole, alone = new / (reading + generating), new / generating
            best[name] = max(best.get(name, (0.0, 0.0, 0)), (whole, alone, batch))
            print(
                f"{name:12} {model.parameter_count().total / 1e6:8.1f} M  {batch:5}  {size / 1e6:9.1f}  {reading:9.2f}"
                f"  {generating:12.2f}  {whole:8.1f}  {alone:16.1f}",
                flush=True,
            )
            batch *= 2
    if "transformer" in best:
        print("\nbest of each over the transformer's best (whole, generating alone):")
        for name, (whole, alone, batch) in best.items():
            of_all, of_generating, _ = best["transformer"]
            print(f"{name:12} batch {batch:3}: {whole / of_all:.2f}, {alone / of_generating:.2f}")


if __name__ == "__main__":
    main()
