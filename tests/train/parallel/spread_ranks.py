"""One rank of the checks of models spread over ranks, a process of its own: see test_spread.py.

    python spread_ranks.py RANK WORLD FOLDER [NAME ...]

The processes meet over a file in FOLDER. Each runs the checks, or those named, in order and writes to FOLDER/RANK.json
what came out: null, or a traceback, after which it leaves (the others then fail too, at once, instead of waiting).
"""

import json
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import context_checks
import expert_checks
import pipeline_checks
import torch
from spread import BLOCKS, Check, batch_of, loss_of, model_of
from torch import distributed

CHECKS: dict[str, Check] = {**context_checks.CHECKS, **expert_checks.CHECKS, **pipeline_checks.CHECKS}


def main() -> None:
    rank, world, folder, wanted = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), world)
    if rank == 0:  # kernels are compiled once, and found in the cache by the others
        loss_of(model_of(*BLOCKS.values()), *batch_of(0)).backward()
        store.set("compiled", "")
    store.wait(["compiled"], timedelta(seconds=300))
    distributed.init_process_group("gloo", store=store, timeout=timedelta(seconds=60), world_size=world, rank=rank)
    came_out: dict[str, str | None] = {}
    for name, function in CHECKS.items():
        if wanted and not any(part in name for part in wanted):
            continue
        begin = time.perf_counter()
        try:
            function()
            came_out[name] = None
        except BaseException:  # pytest's failures too
            came_out[name] = traceback.format_exc()
            break
        if wanted and rank == 0:
            print(f"{time.perf_counter() - begin:6.2f} s  {name}", flush=True)
    (folder / f"{rank}.json").write_text(json.dumps(came_out))


if __name__ == "__main__":
    main()
