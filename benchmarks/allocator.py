"""What keeping freed blocks brings to a training step: python benchmarks/allocator.py [--threads 1]

glibc's allocator can be switched back and forth, so both sides take turns in one process: a training step with the
defaults (blocks over 128 KiB are mapped and unmapped) and one with freed blocks kept.
"""

import argparse
import ctypes
import statistics
import time

import torch

from verim.models import LanguageModel, architecture_config
from verim.runtime.allocator import keep_freed_blocks
from verim.train import AdamWConfig
from verim.train.rules import LENGTH
from verim.train.step import update
from verim.train.task import next_token_loss

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4


def defaults() -> None:
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 65536)
    mallopt(M_MMAP_THRESHOLD, 128 * 1024)
    mallopt(M_TRIM_THRESHOLD, 128 * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.rounds} rounds")
    for architecture, width, batch in (
        ("transformer", 32, 16),
        ("transformer", 128, 16),
        ("mamba", 32, 16),
        ("mamba", 128, 16),
    ):
        model = LanguageModel(architecture_config(architecture, width))
        optimiser = AdamWConfig(learning_rate=1e-6).build(model)
        tokens = torch.randint(0, 256, (batch, LENGTH + 1))

        def step(
            model: LanguageModel = model,
            optimiser: torch.optim.Optimizer = optimiser,
            tokens: torch.Tensor = tokens,
        ) -> None:
            update(model, optimiser, next_token_loss(model, tokens[:, :-1], tokens[:, 1:]), clip=1.0)

        times: dict[str, list[float]] = {"defaults": [], "kept": []}
        for _ in range(options.rounds):
            for name, switch in (("defaults", defaults), ("kept", keep_freed_blocks)):
                switch()
                step()
                began = time.perf_counter()
                for _ in range(3):
                    step()
                times[name].append((time.perf_counter() - began) / 3)
        default, kept = (1e3 * statistics.median(times[name]) for name in ("defaults", "kept"))
        print(
            f"{architecture:12} width {width:4} batch {batch}: defaults {default:7.2f} ms, kept {kept:7.2f} ms, "
            f"ratio {default / kept:.2f}"
        )


if __name__ == "__main__":
    main()
