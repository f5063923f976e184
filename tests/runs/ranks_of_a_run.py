"""One rank of the checks of sharded checkpoints, a process of its own: see test_sharded_checkpoints.py.

    python ranks_of_a_run.py RANK RANKS FOLDER CHECK…

The processes meet over a file in FOLDER. Each runs the named checks in order and writes to FOLDER/RANK.json what came
out: null, or a traceback, after which it leaves (the others then fail too, at once, instead of waiting).
"""

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint import HuggingFaceStorageReader, load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from verim.errors import BusyError, CorruptError, InputError, RankError, SpaceError
from verim.runs import Ranks, RunDirectory, SliceOf, random_state, restore_random_state

CHECKS: dict[str, Callable[[Path], None]] = {}
PLACED = {
    "rows": Shard(0),
    "uneven rows": Shard(0),  # 5 rows: some ranks of 4 have one, some two
    "few rows": Shard(0),  # 3 rows: the last of 4 ranks has none
    "columns": Shard(1),
    "replica": Replicate(),
    "halves": Shard(0),
    "one": Shard(0),
    "scalar": Replicate(),
}
PLAIN = ("plain", "plain scalar", "counts")


def whole(step: int) -> dict[str, Tensor]:
    """What the run holds after `step` steps, whatever the number of ranks."""
    generator = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "rows": normal(8, 3),
        "uneven rows": normal(5, 4),
        "few rows": normal(3, 2, 2),
        "columns": normal(3, 7),
        "replica": normal(4, 4),
        "halves": normal(9, 2).bfloat16(),
        "one": normal(1),
        "scalar": normal(),
        "plain": normal(6),
        "plain scalar": torch.tensor(step),
        "counts": torch.arange(step, step + 5),
        "fused": normal(4, 6 + 4 + 6),  # columns: divided, whole on every rank, divided
        "fused rows": normal(4 * 3, 5),
    }


def fused(tensor: Tensor) -> SliceOf:
    """The tensor-parallel slice: of the first 6 and the last 6 columns a share, the 4 between whole."""
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    bounds = [6 * number // ranks for number in range(ranks + 1)]
    ranges = [(bounds[rank], bounds[rank + 1]), (6, 10), (10 + bounds[rank], 10 + bounds[rank + 1])]
    kept = torch.cat([tensor[:, start:stop] for start, stop in ranges], 1)
    return SliceOf(kept, tuple(tensor.shape), 1, ranges)


def placed(tensors: dict[str, Tensor]) -> dict[str, Tensor | SliceOf]:
    """The tensors as the ranks share them."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    held: dict[str, Tensor | SliceOf] = {}
    for name, tensor in tensors.items():
        if name in PLACED:
            held[name] = distribute_tensor(tensor, mesh, [PLACED[name]], src_data_rank=None)
        elif name == "fused":
            held[name] = fused(tensor)
        elif name == "fused rows":
            held[name] = rows_of_slice(tensor)
        else:
            held[name] = tensor
    return held


def rows_of_slice(tensor: Tensor) -> Tensor | SliceOf:
    """Two tensor ranks take the odd and the even quarters of the rows, and FSDP divides each one's rows again."""
    ranks = distributed.get_world_size()
    if ranks < 4:
        return tensor
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    ranges = [(3 * number, 3 * number + 3) for number in range(4) if number % 2 == grid["tensor"].get_local_rank()]
    kept = torch.cat([tensor[start:stop] for start, stop in ranges])
    return SliceOf(
        distribute_tensor(kept, grid["shard"], [Shard(0)], src_data_rank=None), tuple(tensor.shape), 0, ranges
    )


def local(held: Tensor | SliceOf) -> Tensor:
    tensor = held.tensor if isinstance(held, SliceOf) else held
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def opened(folder: Path) -> RunDirectory:
    return RunDirectory(folder / "run", ranks=Ranks.of_world(60))


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS[function.__name__] = function
    return function


def go_on(folder: Path, last: int) -> None:
    """From the newest checkpoint, which is looked at, to `last`; a checkpoint every other step."""
    run = opened(folder)
    with run.writing():
        checkpoint = run.start({"width": 3}, {"ranks": run.ranks.count})
        step = 0
        if checkpoint is not None:
            step = checkpoint.step
            assert checkpoint.state == {"seen": 10 * step}
            expected = placed(whole(step))
            targets = placed({name: torch.zeros_like(tensor) for name, tensor in whole(step).items()})
            checkpoint.load_into(targets)
            for name, target in targets.items():
                assert torch.equal(local(target), local(expected[name])), name
            assert checkpoint.tensors.keys() == expected.keys()
            for name, tensor in whole(step).items():
                assert torch.equal(checkpoint.tensors[name], tensor), name
        while step < last:
            step += 1
            run.log({"step": step, "loss": 1 / step})
            if step % 2 == 0:
                tensors = placed(whole(step))
                run.save_checkpoint(step, tensors, {"seen": 10 * step}, {"bits_per_byte": 1 / step})
                for held in tensors.values():  # training goes on at once
                    local(held).zero_()


@check
def to_step_6(folder: Path) -> None:
    go_on(folder, 6)


@check
def to_step_11(folder: Path) -> None:
    go_on(folder, 11)


@check
def written_once(folder: Path) -> None:
    """Replicas are not written by every rank: the shards hold no more than the whole; and the work is shared."""
    shards = sorted((folder / "run" / "checkpoints" / "step-00000006").glob("*.safetensors"))
    assert len(shards) == distributed.get_world_size()
    index = json.loads((shards[0].parent / "index.json").read_text())["content"]
    held = [0] * len(shards)
    for name, tensor in whole(6).items():
        for part in index["tensors"][name]["parts"]:
            held[part["shard"]] += torch.Size(part["box"][1]).numel() * tensor.element_size()
    assert sum(held) == sum(tensor.nbytes for tensor in whole(6).values())
    assert max(held) < 2 * sum(held) / len(held)


@check
def torch_reads_it(folder: Path) -> None:
    """torch's own safetensors storage reads the shards (it knows no fused slices), in any placement."""
    tensors = {name: tensor for name, tensor in whole(6).items() if "fused" not in name}
    targets = placed({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    load(targets, storage_reader=HuggingFaceStorageReader(str(folder / "run" / "checkpoints" / "step-00000006")))
    for name, held in placed(tensors).items():
        assert torch.equal(local(targets[name]), local(held)), name


@check
def another_model(folder: Path) -> None:
    run = opened(folder)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    targets = placed({"rows": torch.ones(8, 4), "plain": torch.ones(6), "new": torch.ones(2)})
    with pytest.raises(InputError, match=r"rows is \(8, 3\) in the checkpoint, \(8, 4\) here; new is not there"):
        checkpoint.load_into(targets)
    assert local(targets["plain"]).sum() == 6  # nothing was changed


@check
def a_missing_shard(folder: Path) -> None:
    run = opened(folder)
    newest = run.path / "checkpoints" / "step-00000006"
    if distributed.get_rank() == 0:
        next(newest.glob("shard-00002*")).unlink()
    distributed.barrier()
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None and checkpoint.step == 4 and checkpoint.warning is not None
    assert "shard-00002" in checkpoint.warning and "is not there" in checkpoint.warning
    assert "going on from step 4" in checkpoint.warning


@check
def full_disk_on_one_rank(folder: Path) -> None:
    run = opened(folder)
    own = distributed.get_rank()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with run.writing():
        run.start({"width": 3})
        big = {f"big {rank}": torch.zeros(20_000) for rank in range(2)}
        if own == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        run.save_checkpoint(8, big, {})
        said = r"no space left to write .*shard-00002" if own == 1 else r"rank 1: no space left"
        with pytest.raises(SpaceError, match=said):
            run.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        distributed.barrier()  # the other rank may still be clearing away
        assert run.checkpoint_steps() == [4]
        assert not list(run.path.glob("checkpoints/.*"))
        run.save_checkpoint(8, big, {})
    assert run.checkpoint_steps() == [4, 8]


@check
def settings_differ(folder: Path) -> None:
    run = opened(folder)
    with run.writing(), pytest.raises(InputError, match="width"):
        run.start({"width": distributed.get_rank()})
    with run.writing(), pytest.raises(InputError, match="width = 3, asked for 4"):
        run.start({"width": 4})


@check
def shapes_differ(folder: Path) -> None:
    run = RunDirectory(folder / "other", ranks=Ranks.of_world(60))
    with run.writing():
        run.start({})
        with pytest.raises(InputError, match="give what each rank has for itself a name"):
            run.save_checkpoint(1, {"weight": torch.zeros(2 + distributed.get_rank())}, {})
        run.save_checkpoint(1, {f"rank {distributed.get_rank()}": torch.full((2,), float(distributed.get_rank()))}, {})
    checkpoint = RunDirectory(folder / "other").latest_checkpoint()
    assert checkpoint is not None
    assert {name: tensor[0].item() for name, tensor in checkpoint.tensors.items()} == {"rank 0": 0.0, "rank 1": 1.0}


@check
def one_run_is_in_use(folder: Path) -> None:
    first, second = opened(folder), opened(folder)
    with first.writing(), pytest.raises(BusyError, match="in use by another process"), second.writing():
        pass


@check
def own_generators(folder: Path) -> None:
    run = RunDirectory(folder / "generators", ranks=Ranks.of_world(60))
    own = f"random.{distributed.get_rank()}"
    torch.manual_seed(distributed.get_rank())
    with run.writing():
        run.start({})
        run.save_checkpoint(1, random_state(own), {})
        expected = torch.rand(3)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    torch.manual_seed(5)
    assert restore_random_state(checkpoint.tensors, own)
    assert torch.equal(torch.rand(3), expected)
    assert not restore_random_state(checkpoint.tensors, "random.9")


@check
def a_rank_dies(folder: Path) -> None:
    """The last check: rank 1 is killed while the others write; they are told, and the checkpoint before stays."""
    run = opened(folder)

    def train() -> None:
        with run.writing():
            run.start({"width": 3})
            if distributed.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            run.save_checkpoint(10, {"weight": torch.zeros(1000)}, {})

    with pytest.raises(RankError, match="lost another rank"):
        train()


@check
def all_damaged(folder: Path) -> None:
    run = opened(folder)
    indices = sorted(run.path.glob("checkpoints/*/index.json"))
    contents = [index.read_bytes() for index in indices]
    distributed.barrier()
    if distributed.get_rank() == 0:
        for index, content in zip(indices, contents, strict=True):
            index.write_bytes(content[:-40])
    distributed.barrier()
    with pytest.raises(CorruptError, match=r"no checkpoint can be read: .*index\.json is not valid JSON"):
        run.latest_checkpoint()
    distributed.barrier()
    if distributed.get_rank() == 0:
        for index, content in zip(indices, contents, strict=True):
            index.write_bytes(content)


def main() -> None:
    own, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"store-{sys.argv[4]}-{world}"), world)
    distributed.init_process_group("gloo", store=store, timeout=timedelta(seconds=60), world_size=world, rank=own)
    came_out: dict[str, str | None] = {}
    for name in sys.argv[4:]:
        try:
            CHECKS[name](folder)
            came_out[name] = None
        except BaseException:  # pytest's failures too
            came_out[name] = traceback.format_exc()
            break
    (folder / f"{own}.json").write_text(json.dumps(came_out))


if __name__ == "__main__":
    main()
